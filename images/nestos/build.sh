#!/bin/bash
# Build the NestOS image with agent and Kubernetes.
# usage: build.sh --base IMAGE@sha256:DIGEST --agent FILE --agent-units DIR --kubernetes DIR --kubernetes-version vX.Y.Z --tag TAG
# DIR of --kubernetes holds kubeadm, kubelet, kubectl and their published digests: NAME.sha256, one hexadecimal digest each.
# environment: BUILDER   podman (default) or buildah
set -euo pipefail
usage() { sed -n '3,5p' "$0" >&2; exit 64; }

base='' agent='' agent_units='' kubernetes='' kubernetes_version='' tag=''
while (($#)); do
    (($# > 1)) || usage
    case $1 in
    --base) base=$2 ;;
    --agent) agent=$2 ;;
    --agent-units) agent_units=$2 ;;
    --kubernetes) kubernetes=$2 ;;
    --kubernetes-version) kubernetes_version=$2 ;;
    --tag) tag=$2 ;;
    *) usage ;;
    esac
    shift 2
done
[[ $base && $agent && $agent_units && $kubernetes && $kubernetes_version && $tag ]] || usage
[[ $base == *@sha256:* ]] || { echo "--base wants a digest: name@sha256:..." >&2; exit 64; }

recipe=$(dirname "$(realpath "$0")")
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir "$context/bin" "$context/units"
cp -r "$recipe/files" "$context/files"
cp "$agent_units"/*.service "$context/units/"
install -m 0755 "$agent" "$context/bin/nkd-agent"
for program in kubeadm kubelet kubectl; do
    read -r want _ <"$kubernetes/$program.sha256"
    got=$(sha256sum <"$kubernetes/$program")
    [[ ${got%% *} == "$want" ]] || { echo "$kubernetes/$program has sha256 ${got%% *}, $program.sha256 says $want" >&2; exit 1; }
    install -m 0755 "$kubernetes/$program" "$context/bin/$program"
done

"${BUILDER:-podman}" build --file "$recipe/Containerfile" --build-arg BASE="$base" \
    --build-arg KUBERNETES_VERSION="$kubernetes_version" --tag "$tag" "$context"
