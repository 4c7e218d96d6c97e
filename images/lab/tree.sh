#!/bin/bash
# Bootstrap the Debian tree that the image is composed from.
# usage: tree.sh OUT_DIR      writes OUT_DIR/root (the tree) and OUT_DIR/packages.txt (what was installed)
# environment: MIRROR (address of a Debian mirror), SUITE, SOURCE_DATE_EPOCH
set -euo pipefail
out=${1:?usage: tree.sh OUT_DIR}
here=$(dirname "$(realpath "$0")")
mkdir -p "$out"
packages=$(sed 's/#.*//' "$here/packages.list" | xargs | tr ' ' ,)

# The hook would build an initramfs for this machine at installation, compose makes its own; dracut's package runs it by name.
# Documentation and translations are a third of the tree and nobody reads them on a node.
mmdebstrap --mode=root --variant=minbase \
  --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/etc/kernel/postinst.d/*' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/info/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --essential-hook='echo "#!/bin/sh" | install -D /dev/stdin "$1/etc/kernel/postinst.d/dracut"' \
  --include="$packages" \
  "${SUITE:-trixie}" "$out/root" "${MIRROR:?the Debian mirror that this machine uses}"

chroot "$out/root" dpkg-query -W -f '${Package} ${Version}\n' >"$out/packages.txt"
