#!/bin/bash
# Debian's shape becomes an ostree system's: everything in /usr and /etc, the rest empty or links into /var.
set -euo pipefail
root=$work/root
mkdir -p "$root/usr/lib/sysimage"
mv "$root/var/lib/dpkg" "$root/usr/lib/sysimage/dpkg"
rm -f "$root"/usr/lib/sysimage/dpkg/*-old "$root"/usr/lib/sysimage/dpkg/lock*
cd "$root"
rm -rf dev run proc sys tmp boot var home root srv opt mnt media usr/local
mkdir dev run proc sys tmp boot var sysroot
chmod 1777 tmp
for directory in home srv opt mnt; do ln -s "var/$directory" "$directory"; done
ln -s var/roothome root
ln -s run/media media
ln -s sysroot/ostree ostree
ln -s ../var/usrlocal usr/local
