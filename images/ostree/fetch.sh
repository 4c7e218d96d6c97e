#!/bin/bash
# Download Debian's source of ostree with an apt state of its own: nothing is installed, the machine's apt is left as it is.
# usage: fetch.sh OUT_DIR     writes OUT_DIR/*.dsc and the archives that it names
# environment: MIRROR (address of a Debian mirror), SUITE
set -euo pipefail
out=$(realpath "${1:?usage: fetch.sh OUT_DIR}")
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
: "${MIRROR:?the Debian mirror that this machine uses}" "${SUITE:?}"

apt=$out/apt
mkdir -p "$apt"/{lists,cache/archives}/partial
: >"$apt/status"
echo "deb-src [signed-by=$keyring] $MIRROR $SUITE main" >"$apt/sources.list"
apt_get() {
  apt-get -q -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 \
    -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o Dir::State="$apt" -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" "$@"
}

echo "stage: lists"
apt_get update --error-on=any
echo "stage: source"
(cd "$out" && apt_get source --download-only ostree)
rm -rf "$apt"
