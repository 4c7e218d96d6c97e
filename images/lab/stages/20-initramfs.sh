#!/bin/bash
# The initramfs of the installed system; the live one is the same with the live root's digest behind it.
set -euo pipefail
root=$work/root
kernel_version=$(basename "$root"/usr/lib/modules/*)
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
# dracut's log goes with the caller's; a warning in it is usually why a boot fails.
chroot "$root" dracut --force --no-hostonly --reproducible --quiet --kver "$kernel_version" /tmp/initramfs.img
# dracut makes it unreadable for others, an HTTP server may be one.
install -m 0644 "$root/tmp/initramfs.img" "$root/usr/lib/modules/$kernel_version/initramfs.img"
