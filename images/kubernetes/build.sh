#!/bin/bash
# Build the programs, container images and runtime tools of a Kubernetes node from what fetch.sh downloaded.
# usage: build.sh --packages DIR --go-cache DIR --out DIR VERSION...
# Writes below OUT: versions/, images/, sys/, and the lists images.txt (file and name) and packages.txt. Work files are in OUT/work.
set -euo pipefail
umask 022
export LC_ALL=C SOURCE_DATE_EPOCH=1610544000
usage() { sed -n '3s/^# //p' "$0" >&2; exit 2; }
here=$(dirname "$(realpath "$0")")
packages='' go_cache='' out=''
while (($#)); do
  case $1 in
    --packages) packages=$(realpath "$2"); shift 2 ;;
    --go-cache) go_cache=$(realpath -m "$2"); shift 2 ;;
    --out) out=$(realpath "$2"); shift 2 ;;
    -*) usage ;;
    *) break ;;
  esac
done
[[ $packages && $go_cache && $out && $# -gt 0 ]] || usage
versions=$*
work=$out/work
root=$work/root
multiarch=$(gcc -print-multiarch)
export here packages go_cache out versions work root multiarch

for stage in "$here"/stages/[0-9]*.sh; do
  echo "stage: $(basename "$stage" .sh)"
  bash "$stage"
done

rm -rf "$work"
find "$out" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
