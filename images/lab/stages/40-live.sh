#!/bin/bash
# The live system: squashfs first, then the initramfs that knows its digest.
set -euo pipefail
root=$work/root
kernel_version=$(basename "$root"/usr/lib/modules/*)
kernel=$out/lab-$version-live-kernel-x86_64
initramfs=$out/lab-$version-live-initramfs.x86_64.img
rootfs=$out/lab-$version-live-rootfs.x86_64.img

# The live system was booted by a kernel and an initramfs of its own: they need not be in its memory once more, nor what only
# an installed system runs.
mapfile -t not_live <"$work/not-live"
env -u SOURCE_DATE_EPOCH mksquashfs "$root" "$rootfs" -noappend -quiet -no-progress -no-xattrs -comp zstd -Xcompression-level 6 \
    -mkfs-time "$SOURCE_DATE_EPOCH" -all-time "$SOURCE_DATE_EPOCH" \
    -e "usr/lib/modules/$kernel_version/vmlinuz" "usr/lib/modules/$kernel_version/initramfs.img" "${not_live[@]}"

install -m 0644 "$root/usr/lib/modules/$kernel_version/vmlinuz" "$kernel"
mkdir -p "$work/digest/etc"
sha256sum "$rootfs" | cut -d' ' -f1 >"$work/digest/etc/nestos-live-rootfs.sha256"
touch -d "@$SOURCE_DATE_EPOCH" "$work"/digest/etc/* "$work/digest/etc"
cp "$root/usr/lib/modules/$kernel_version/initramfs.img" "$initramfs"
# An archive behind an archive must begin at a multiple of four bytes.
truncate -s %4 "$initramfs"
(cd "$work/digest" && find etc | sort | cpio --quiet --reproducible --owner=0:0 -o -H newc) >>"$initramfs"
