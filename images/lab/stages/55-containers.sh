#!/bin/bash
# The container images are in containerd before the first boot: taking them in costs an emulated machine two minutes.
set -euo pipefail
store=$work/kubernetes/usr/share/nestos/container-images
[[ -e $store/list ]] || exit 0
# The path of a socket must be short.
run=$(mktemp -d)
trap 'kill "$containerd" 2>/dev/null && wait "$containerd"; rm -rf "$run"' EXIT
cat >"$run/config.toml" <<TOML
version = 2
root = "$work/containerd"
state = "$run/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "$run/socket"
TOML
PATH=$work/kubernetes/usr/bin:$PATH
containerd --config "$run/config.toml" &
containerd=$!
export CONTAINERD_ADDRESS=$run/socket
for ((i = 0; i < 100; i++)); do
    ctr version >/dev/null 2>&1 && break
    sleep 0.1
done
IMPORT_OPTIONS=--compress-blobs "$work/kubernetes/usr/lib/nestos/container-images" "$store"
