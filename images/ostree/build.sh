#!/bin/bash
# Build an ostree that checks ed25519 signatures beside OpenPGP ones, from what fetch.sh downloaded.
# usage: build.sh --source DIR --out DIR     writes OUT/bin/ostree; work files are in OUT/work
set -euo pipefail
umask 022
export LC_ALL=C
usage() { sed -n '3s/^# //p' "$0" >&2; exit 2; }
source='' out=''
while (($#)); do
  case $1 in
    --source) source=$(realpath "$2"); shift 2 ;;
    --out) out=$(realpath "$2"); shift 2 ;;
    *) usage ;;
  esac
done
[[ $source && $out ]] || usage
work=$out/work

echo "stage: unpack"
dpkg-source --no-check --no-copy --extract "$source"/ostree_*.dsc "$work"
cd "$work"
# The patches touch configure.ac. What was generated from it is in the archive, and serves.
find . -exec touch --no-dereference --date=@0 {} +

echo "stage: configure"
# That configure knows gpgme by a name that Debian's package has given up.
export OT_DEP_GPGME_CFLAGS=-pthread OT_DEP_GPGME_LIBS=-lgpgme
./configure --prefix=/usr --disable-shared --enable-static \
  --with-ed25519-libsodium --with-gpgme --with-curl --without-soup \
  --enable-introspection=no --disable-gtk-doc --disable-man --disable-rofiles-fuse \
  --without-avahi --without-libarchive --without-libmount --without-libsystemd --without-selinux --without-smack

echo "stage: compile"
make --jobs "$(nproc)" all
install -D --strip ostree "$out/bin/ostree"
# Both kinds of signatures, or it is not what it was built for.
features=$("$out/bin/ostree" --version)
for feature in gpgme sign-ed25519; do grep -qx -- "  - $feature" <<<"$features"; done
cd /
rm -rf "$work"
