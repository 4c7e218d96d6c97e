#!/bin/bash
# The disk image that the installer writes: GPT, GRUB for BIOS and UEFI, the deployed commit. File systems are made from
# directories, without mounting them: no loop devices needed, and no kernel decides where a block goes.
set -euo pipefail
source "$recipe/stages/lib.bash"
enter_tools
raw=$work/disk.raw
sysroot=$work/sysroot
boot=$sysroot/boot
mib=$((1024 * 1024))

# --- the deployed system. /boot is a file system of its own already here: ostree freezes it at the end, and it must not be ours.
mkdir -p "$boot"
mount -t tmpfs -o mode=0755 tmpfs "$boot"
# The bind of $work was made before this mount.
mount --bind "$boot" "$tools/mnt/sysroot/boot"
in_tools ostree admin init-fs --modern /mnt/sysroot
for setting in "bootloader none" "readonly true" "bootprefix false"; do
    in_tools ostree config --repo=/mnt/sysroot/ostree/repo set "sysroot.${setting% *}" "${setting#* }"
done
in_tools ostree admin stateroot-init --sysroot=/mnt/sysroot lab
in_tools ostree pull-local --repo=/mnt/sysroot/ostree/repo --remote=lab /mnt/repo lab/x86_64/stable
# GRUB replaces $ignition_firstboot, with nothing after the first boot.
in_tools ostree admin deploy --sysroot=/mnt/sysroot --os=lab \
    --karg=root=LABEL=root --karg=rw --karg=console=tty0 --karg-append=console=ttyS0,115200 \
    --karg=ignition.platform.id=metal '--karg=$ignition_firstboot' lab:lab/x86_64/stable

# --- what is in /var before the first boot
if [[ -d $work/containerd ]]; then
    mkdir -p "$sysroot/ostree/deploy/lab/var/lib"
    mv "$work/containerd" "$sysroot/ostree/deploy/lab/var/lib/containerd"
fi

# --- the boot file system's part of GRUB
mkdir -p "$boot/grub"
# The installer looks for Fedora's name.
ln -s grub "$boot/grub2"
for target in i386-pc x86_64-efi; do
    mkdir "$boot/grub/$target"
    cp "$tools/usr/lib/grub/$target"/*.{mod,lst} "$boot/grub/$target/"
    # See grub.cfg: these two must not load their module by themselves.
    sed -i -E '/^\*?(linux|initrd): /d' "$boot/grub/$target/command.lst"
done
cp "$recipe/overlay/usr/lib/nestos/grub.cfg" "$boot/grub/grub.cfg"
in_tools grub-editenv /mnt/sysroot/boot/grub/grubenv create
touch "$boot/ignition.firstboot"

# --- GRUB's first part finds the boot file system by label: identifiers change at the first boot.
cat >"$work/early.cfg" <<'GRUB'
search --no-floppy --label boot --set root
set prefix=($root)/grub
normal
GRUB
modules="part_gpt ext2 fat search search_label configfile normal serial terminal echo test loadenv"
in_tools grub-mkimage -O x86_64-efi -p /grub -c /mnt/early.cfg -o /mnt/BOOTX64.EFI $modules
in_tools grub-mkimage -O i386-pc -p /grub -c /mnt/early.cfg -o /mnt/core.img biosdisk $modules
cp "$tools/usr/lib/grub/i386-pc/boot.img" "$work/boot.img"

# --- file systems. Same bytes each time: fixed identifiers, fixed hash seeds, one date.
# ostree makes a deployment immutable where the file system can; nodes do without.
chattr -i "$sysroot"/ostree/deploy/lab/deploy/*.0 2>/dev/null || :
find "$sysroot" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkfs_ext4() { # LABEL UUID SIZE_MIB JOURNAL_MIB DIRECTORY
    truncate -s "$3M" "$work/$1.ext4"
    in_tools mke2fs -q -t ext4 -T default -b 4096 -L "$1" -U "$2" -J "size=$4" -d "$5" \
        -E "hash_seed=$2,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0" "/mnt/$1.ext4"
}
mkfs_ext4 boot 4e4b4400-1ab0-4000-8000-0000000000b0 384 8 /mnt/sysroot/boot
umount "$tools/mnt/sysroot/boot" "$boot"
# Room to boot for the first time; then it grows to the disk.
root_mib=$((($(du -sm "$sysroot" | cut -f1) * 11 / 10 + 256) / 64 * 64))
mkfs_ext4 root 4e4b4400-1ab0-4000-8000-0000000000f0 "$root_mib" 64 /mnt/sysroot

truncate -s 127M "$work/esp.fat"
in_tools mkfs.fat --invariant -i 4e4b4421 -n EFI-SYSTEM /mnt/esp.fat >/dev/null
mmd -i "$work/esp.fat" ::/EFI ::/EFI/BOOT
touch -d "@$SOURCE_DATE_EPOCH" "$work/BOOTX64.EFI"
mcopy -m -i "$work/esp.fat" "$work/BOOTX64.EFI" ::/EFI/BOOT/BOOTX64.EFI

# --- the disk
truncate -s $(((1 + 1 + 127 + 384 + root_mib + 1) * mib)) "$raw"
partition_guid() { printf '%s%x' "${disk_guid%?}" $((10 + $1)); }
in_tools sfdisk --quiet /mnt/disk.raw <<TABLE
label: gpt
label-id: $disk_guid
unit: sectors
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, uuid=$(partition_guid 1), name="BIOS-BOOT"
start=4096, size=260096, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=$(partition_guid 2), name="EFI-SYSTEM"
start=264192, size=786432, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=$(partition_guid 3), name="boot"
start=1050624, size=$((root_mib * 2048)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=$(partition_guid 4), name="root"
TABLE
place() { dd if="$work/$1" of="$raw" bs=1M seek="$2" conv=notrunc,sparse status=none; }
place esp.fat 2
place boot.ext4 129
place root.ext4 513
"$recipe/stages/bios-boot" "$work/boot.img" "$work/core.img" "$raw"

sha256sum "$raw" | cut -d' ' -f1 >"$work/disk.raw.sha256"
# Two threads always: the output depends on whether there is more than one.
zstd -q -f -T2 -6 "$raw" -o "$out/lab-$version-metal.x86_64.raw.zst"
