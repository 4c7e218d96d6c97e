#!/bin/bash
# stream.json: what there is, in the shape of Fedora CoreOS's stream metadata, locations relative to itself.
# build.json: what it was made from.
set -euo pipefail
digest() { sha256sum "$out/$1" | cut -d' ' -f1; }
artifact() { printf '{"location": "%s", "sha256": "%s"}' "$1" "$(digest "$1")"; }
kernel=lab-$version-live-kernel-x86_64
initramfs=lab-$version-live-initramfs.x86_64.img
rootfs=lab-$version-live-rootfs.x86_64.img
disk=lab-$version-metal.x86_64.raw.zst
date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)

cat >"$out/stream.json" <<JSON
{
  "stream": "stable",
  "metadata": {"last-modified": "$date", "generator": "lab"},
  "architectures": {
    "x86_64": {
      "artifacts": {
        "metal": {
          "release": "$version",
          "formats": {
            "pxe": {
              "kernel": $(artifact "$kernel"),
              "initramfs": $(artifact "$initramfs"),
              "rootfs": $(artifact "$rootfs")
            },
            "raw.zst": {
              "disk": {
                "location": "$disk",
                "sha256": "$(digest "$disk")",
                "uncompressed-sha256": "$(<"$work/disk.raw.sha256")"
              }
            }
          }
        }
      }
    }
  }
}
JSON

# "name": value, lines of an object: the last one without a comma
object() { sed '$!s/$/,/'; }
sizes=$(for file in "$kernel" "$initramfs" "$rootfs" "$disk"; do echo "    \"$file\": $(stat -c %s "$out/$file")"; done | object)
packages=$(sed -E 's/^(\S+) (\S+)$/    "\1": "\2"/' "$tree/packages.txt" | object)
cat >"$out/build.json" <<JSON
{
  "version": "$version",
  "input": "${LAB_INPUT_HASH:-}",
  "ostree": {"ref": "lab/x86_64/stable", "commit": "$(<"$out/repo/refs/heads/lab/x86_64/stable")"},
  "kernel": "$(basename "$work"/root/usr/lib/modules/*)",
  "agent": "$(sha256sum "$agent" | cut -d' ' -f1)",
  "installer": "$(sha256sum "$installer" | cut -d' ' -f1)",
  "sizes": {
$sizes
  },
  "raw-size": $(stat -c %s "$work/disk.raw"),
  "packages": {
$packages
  }
}
JSON
