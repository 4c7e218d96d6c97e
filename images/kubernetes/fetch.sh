#!/bin/bash
# Download the packages of packages.list with an apt state of its own: nothing is installed, the machine's apt is left as it is.
# usage: fetch.sh OUT_DIR     writes OUT_DIR/{build,node}/*.deb, OUT_DIR/source.tar.gz and OUT_DIR/packages.txt (names and versions)
# environment: MIRROR (address of a Debian mirror), SUITE
set -euo pipefail
out=$(realpath "${1:?usage: fetch.sh OUT_DIR}")
here=$(dirname "$(realpath "$0")")
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
: "${MIRROR:?the Debian mirror that this machine uses}" "${SUITE:?}"

of_role() { sed 's/#.*//' "$here/packages.list" | awk -v role="$1" '$1 == role { $1 = ""; print }' | xargs; }

apt=$out/apt
mkdir -p "$apt"/{lists,cache/archives}/partial
# Without this machine's list of packages no version that it has installed is the candidate.
: >"$apt/status"
for suite in "$SUITE" "$SUITE-updates"; do echo "deb [signed-by=$keyring] $MIRROR $suite main"; done >"$apt/sources.list"
echo "deb-src [signed-by=$keyring] $MIRROR $SUITE main" >>"$apt/sources.list"
apt_get() {
  apt-get -q -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 \
    -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o Dir::State="$apt" -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" "$@"
}

echo "stage: lists"
apt_get update --error-on=any
echo "stage: packages"
for role in build node; do
  mkdir "$out/$role"
  # shellcheck disable=SC2046  # names, one word each
  (cd "$out/$role" && apt_get download $(of_role "$role"))
done
echo "stage: source"
read -r source version < <(of_role source)
mkdir "$out/src"
(cd "$out/src" && apt_get source --download-only "$source=$version")
mv "$out/src/${source}_"*.orig.tar.gz "$out/source.tar.gz"

{
  echo "$source $version"
  for package in "$out"/*/*.deb; do dpkg-deb --show --showformat '${Package} ${Version}\n' "$package"; done
} | LC_ALL=C sort >"$out/packages.txt"
rm -rf "$apt" "$out/src"
