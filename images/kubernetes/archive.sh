#!/bin/bash
# A container image as an archive, which `ctr images import` takes: one layer, the same bytes from the same tree.
# usage: archive.sh FILE NAME[,NAME...] CONFIG TREE WORK_DIR      CONFIG: members of the configuration, like "Cmd":["sh"]
# environment: SOURCE_DATE_EPOCH
set -euo pipefail
file=$1 names=$2 config=$3 tree=$4 work=$5
pack() { tar --create --sort=name --format=posix --pax-option=delete=atime,delete=ctime --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner "$@"; }
digest() { sha256sum "$1" | cut -d' ' -f1; }
rm -rf "$work"
mkdir -p "$work"
pack --file "$work/layer.tar" -C "$tree" .
cat >"$work/config" <<JSON
{"architecture":"$(dpkg --print-architecture)","os":"linux","created":"$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)",
"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/",$config},
"rootfs":{"type":"layers","diff_ids":["sha256:$(digest "$work/layer.tar")"]}}
JSON
config_file=$(digest "$work/config").json
mv "$work/config" "$work/$config_file"
printf '[{"Config":"%s","RepoTags":["%s"],"Layers":["layer.tar"]}]\n' "$config_file" "${names//,/\",\"}" >"$work/manifest.json"
pack --file "$file" -C "$work" "$config_file" layer.tar manifest.json
rm -rf "$work"
