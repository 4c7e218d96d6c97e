#!/bin/bash
# Compose the lab node image: a Debian tree, our overlay, the agent and the installer become the artifacts of one version.
# usage: compose.sh --tree DIR --installer FILE --agent FILE [--agent-units DIR] [--kubernetes DIR --kubernetes-version VERSION] --version VERSION --out DIR
# environment: LAB_ROOT_PASSWORD   for debugging only: without it nobody logs in as root on the console
set -euo pipefail
usage() { sed -n '3p' "$0" >&2; exit 64; }

agent_units='' kubernetes='' kubernetes_version=''
while (($#)); do
    case $1 in
    --tree) tree=$(realpath "$2") ;;
    --installer) installer=$(realpath "$2") ;;
    --agent) agent=$(realpath "$2") ;;
    --agent-units) agent_units=$(realpath -m "$2") ;;
    --kubernetes) kubernetes=$(realpath "$2") ;;
    --kubernetes-version) kubernetes_version=$2 ;;
    --version) version=$2 ;;
    --out) out=$(realpath -m "$2") ;;
    *) usage ;;
    esac
    shift 2
done
: "${tree:?}" "${installer:?}" "${agent:?}" "${version:?}" "${out:?}"

recipe=$(dirname "$(realpath "$0")")
mkdir -p "$out"
work=$(mktemp -d "$out.work.XXXXXX")
# Mounts live in the stages' own namespace: when this runs there are none left below the directory.
trap 'rm -rf --one-file-system "$work"' EXIT

export recipe tree installer agent agent_units kubernetes kubernetes_version version out work
export LC_ALL=C TZ=UTC
umask 022
# One date for everything, so that the same inputs give the same bytes.
export SOURCE_DATE_EPOCH=1735689600
# Identifiers of the image; the first boot replaces them (see nestos-firstboot-disk).
export disk_guid=4e4b4400-1ab0-4000-8000-000000000001

for stage in "$recipe"/stages/*.sh; do
    # The caller shows these lines as progress.
    echo "stage: $(basename "$stage" .sh)"
    unshare --mount --propagation private "$stage"
done
