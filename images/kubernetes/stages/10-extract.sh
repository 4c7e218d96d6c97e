#!/bin/bash
# Unpack: Go, the node's packages, and the source of Kubernetes with what it lacks.
set -euo pipefail
. "$here/stages/lib.bash"
extract "$work/go" "$packages"/build/*.deb
extract "$root" "$packages"/node/*.deb

kubernetes=$work/gopath/src/k8s.io/kubernetes
mkdir -p "$kubernetes"
tar -xzf "$packages/source.tar.gz" --strip-components=1 --no-same-owner -C "$kubernetes"
# The vendored 1.0.1 breaks with Go 1.18 and later: the API server crashes at its first custom resource. Debian has 1.0.2.
reflect2=$kubernetes/vendor/github.com/modern-go/reflect2
rm -rf "$reflect2"
cp -r "$work/go/usr/share/gocode/src/github.com/modern-go/reflect2" "$reflect2"
rm -f "$reflect2/go.mod"
