#!/bin/bash
# The tree as a commit in an archive repository, which nodes pull upgrades from over HTTP.
set -euo pipefail
source "$recipe/stages/lib.bash"
enter_tools
mkdir -p "$work/repo"
mv "$work/root/etc" "$work/root/usr/etc"
in_tools ostree init --repo=/mnt/repo --mode=archive
in_tools ostree commit --repo=/mnt/repo --branch=lab/x86_64/stable --tree=dir=/mnt/root --bootable \
    --timestamp="@$SOURCE_DATE_EPOCH" --subject="lab $version" --add-metadata-string=version="$version"
in_tools ostree summary --repo=/mnt/repo --update
rm -rf "$out/repo"
cp -a --reflink=auto "$work/repo" "$out/repo"
