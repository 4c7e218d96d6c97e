#!/bin/bash
# Compile: once for each version stamp; from the second on nearly everything is in the cache of Go.
set -euo pipefail
export GOROOT=$work/go/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$go_cache GOTMPDIR=$work/gotmp
export GOENV=off GOTOOLCHAIN=local GOPROXY=off GOSUMDB=off GO111MODULE=off GOFLAGS='' GOOS=linux CGO_ENABLED=0
unset GOARCH
export PATH=$GOROOT/bin:$PATH
mkdir -p "$GOTMPDIR" "$GOCACHE"
cd "$GOPATH/src/k8s.io/kubernetes"
# Programs are built at once, so that packages are compiled beside the linking of others; two at a time fit into the memory.
build() { go build -p 2 -trimpath -buildvcs=false "$@"; }

# The API server wants a description of its types, which the source package lacks.
echo "stage: 20-programs, generated source"
build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages_with_types=$(grep -rl --include='*.go' --exclude-dir={_output,test,.go} '+k8s:openapi-gen=' pkg cmd plugin staging/src/k8s.io |
  grep -vE '/(code-generator|sample-apiserver)/' | xargs -n1 dirname | sort -u |
  sed 's|^staging/src/|k8s.io/kubernetes/vendor/|; t; s|^|k8s.io/kubernetes/|' | paste -sd,)
"$work/openapi-gen" --logtostderr -i "$packages_with_types" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
  -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/violations.report"

for version in $versions; do
  echo "stage: 20-programs, $version"
  flags='-s -w'
  for package in client-go/pkg/version component-base/version; do
    for stamp in gitVersion="$version" gitMajor=1 gitMinor="$(cut -d. -f2 <<<"$version")" gitTreeState=clean \
      gitCommit=faecb196815e248d3ecfb03c680a4507229c2a56 buildDate="$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)"; do
      flags+=" -X k8s.io/kubernetes/vendor/k8s.io/$package.$stamp"
    done
  done
  mkdir -p "$work/bin/$version"
  build -tags 'providerless dockerless nokmem' -ldflags "$flags" -o "$work/bin/$version/" \
    ./cmd/kubeadm ./cmd/kubelet ./cmd/kubectl ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler ./cmd/kube-proxy
  for program in kubeadm kubelet kubectl; do
    install -D -m 0755 "$work/bin/$version/$program" "$out/versions/$version/$program"
  done
done
gcc -Os -Wall -static -s -DVERSION=v3.2 -o "$work/bin/pause" build/pause/linux/pause.c
