#!/bin/bash
# Kubernetes as a further layer of files, from what `cargo xtask image kubernetes` made. Nothing for an image without it.
set -euo pipefail
layer=$work/kubernetes
mkdir "$layer"
: >"$work/not-live"
[[ $kubernetes ]] || exit 0

cp -r "$recipe/../nestos/files/." "$layer/"
cp -r --preserve=mode "$recipe/kubernetes/." "$layer/"
cp -r --preserve=mode "$kubernetes/sys/usr" "$layer/"
# /usr/local is a link into /var here. etcd runs in its container.
mv "$layer/usr/local/bin/crictl" "$layer/usr/bin/"
rm -r "$layer/usr/local" "$layer"/usr/bin/etcd*
# The tree's own libraries are newer than those of Debian 12, and do; but iptables takes its very own libxtables alone, and
# nothing else here uses that.
(cd "$layer" && find usr/lib -name '*.so.*' ! -name 'libxtables.so.*') | while read -r library; do
    if [[ -e $tree/root/$library ]]; then rm "$layer/$library"; fi
done
version_files=$kubernetes/versions/$kubernetes_version
install -m 0755 "$version_files"/{kubeadm,kubelet,kubectl} "$layer/usr/bin/"

# --- container images, with every name that kubeadm asks for
store=$layer/usr/share/nestos/container-images
mkdir -p "$store"
for archive in "$kubernetes"/images/*.tar "$version_files"/images/*.tar; do
    names=$(tar -xOf "$archive" manifest.json | sed -E 's/.*"RepoTags":\["([^]]*)"\].*/\1/; s/","/ /g')
    zstd -q -T2 -6 "$archive" -o "$store/$(basename "$archive").zst"
    echo "$(basename "$archive").zst $names"
done >"$store/list"
# Debian has no source of CoreDNS: clusters leave the add-on out, and kubeadm wants the image all the same.
missing=$("$version_files/kubeadm" config images list --kubernetes-version "$kubernetes_version" 2>/dev/null |
    while read -r name; do grep -qwF "$name" "$store/list" || printf ' %s' "$name"; done)
if [[ $missing ]]; then
    if [[ ! $missing =~ ^\ k8s\.gcr\.io/coredns[^\ ]*$ ]]; then
        echo "kubeadm wants images that are not there:$missing" >&2
        exit 1
    fi
    sed -i "/^pause.tar.zst /s|\$|$missing|" "$store/list"
fi
chmod -R u=rwX,go=rX "$layer"

# The live system installs; its memory is not for these.
(cd "$layer" && find usr/bin usr/sbin usr/lib/cni usr/lib/nkd-socat usr/share ! -type d) >"$work/not-live"
