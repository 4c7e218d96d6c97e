#!/bin/bash
# The Debian tree with our files in it: what a node runs, still in Debian's shape.
set -euo pipefail
root=$work/root
cp -a --reflink=auto "$tree/root" "$root"
cp -r --preserve=mode "$recipe/overlay/." "$root/"
cp -r --preserve=mode "$work/kubernetes/." "$root/"
chmod 0440 "$root/etc/sudoers.d/nestos"
sed -i "s/@DISK_GUID@/$disk_guid/" "$root/usr/lib/dracut/modules.d/50nestos/nestos-firstboot-disk"
install -m 0755 "$installer" "$root/usr/bin/coreos-installer"
install -m 0755 "$agent" "$root/usr/bin/nkd-agent"
if [[ -d $agent_units ]]; then
    for unit in "$agent_units"/*.service; do
        [[ -e $unit ]] || continue
        install -m 0644 "$unit" "$root/usr/lib/systemd/system/"
        echo "enable $(basename "$unit")" >>"$root/usr/lib/systemd/system-preset/10-nkd-agent.preset"
    done
fi
cat >"$root/usr/lib/os-release" <<OS
NAME="NKD lab node image"
ID=lab
ID_LIKE=debian
VERSION="$version"
VERSION_ID=$version
PRETTY_NAME="NKD lab node image $version"
OSTREE_VERSION='$version'
OS

# The kernel goes where ostree looks for it.
kernel_version=$(basename "$root"/usr/lib/modules/*)
mv "$root/boot/vmlinuz-$kernel_version" "$root/usr/lib/modules/$kernel_version/vmlinuz"
# kubeadm's preflight reads it there.
mv "$root/boot/config-$kernel_version" "$root/usr/lib/modules/$kernel_version/config"
rm -rf "$root"/boot/* "$root"/vmlinuz* "$root"/initrd.img*

# GRUB's modules are taken from the Debian tree when the disk is made; a node never installs GRUB itself.
rm -rf "$root"/usr/lib/grub
# Neither does it use these; each costs a start-up of a second under emulation, and the ssh generator waits for a vsock.
for generator in ssh gpt-auto hibernate-resume sysv rc-local tpm2 system-update; do
    rm -f "$root/usr/lib/systemd/system-generators/systemd-$generator-generator"
done
rm -rf "$root"/etc/apt/sources.list* "$root"/etc/cron* "$root"/etc/init.d "$root"/etc/rc?.d

# A machine's own things are made at its first boot.
rm -f "$root"/etc/hostname "$root"/etc/resolv.conf "$root"/etc/ssh/ssh_host_* "$root"/etc/machine-id
echo uninitialized >"$root/etc/machine-id"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
: >"$root/etc/fstab"

# Exactly the presets' units, not what Debian's packages enabled when they were installed.
chroot "$root" systemctl preset-all 2>/dev/null
chroot "$root" systemctl set-default multi-user.target 2>/dev/null
# Rebuild caches at each first boot that the image already has, or ask questions at the console.
chroot "$root" systemctl mask systemd-hwdb-update.service systemd-journal-catalog-update.service systemd-firstboot.service \
    e2scrub_reap.service 2>/dev/null
if [[ ${LAB_ROOT_PASSWORD:-} ]]; then
    # A fixed salt, for the same image each time.
    echo "root:$(openssl passwd -6 -salt lab "$LAB_ROOT_PASSWORD")" | chroot "$root" chpasswd --encrypted
fi
rm -f "$root"/etc/*- "$root"/etc/.pwd.lock
