#!/bin/bash
# Container images, put together without a container engine: a tree of files, one layer, under the names that kubeadm wants.
set -euo pipefail
. "$here/stages/lib.bash"
registry=k8s.gcr.io
trees=$work/trees
: >"$out/images.txt"

# image FILE NAMES CONFIG TREE: an archive of TREE below $out
image() {
  mkdir -p "$(dirname "$out/$1")"
  bash "$here/archive.sh" "$out/$1" "$2" "$3" "$4" "$work/archive"
  for name in ${2//,/ }; do echo "$1 $name"; done >>"$out/images.txt"
}

# tree NAME: a new tree with what any container expects
tree() {
  local tree=$trees/$1
  mkdir -p "$tree"/{dev,etc,proc,run,sys,tmp,var} "$tree"/usr/{bin,sbin,lib,lib64,local/bin}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
  chmod 1777 "$tree/tmp"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
  echo 'root:x:0:' >"$tree/etc/group"
  echo "$tree"
}

# shell TREE: busybox and its names, where nothing else has them
shell() {
  cp "$root/usr/bin/busybox" "$1/usr/bin/busybox"
  for name in $("$root/usr/bin/busybox" --list); do [[ -e $1/usr/bin/$name ]] || ln -s busybox "$1/usr/bin/$name"; done
}

pause=$(tree pause)
cp "$work/bin/pause" "$pause/pause"
# The second name is the default of containerd's configuration.
image images/pause.tar "$registry/pause:3.2,registry.k8s.io/pause:3.6" '"Entrypoint":["/pause"]' "$pause"

busybox=$(tree busybox)
shell "$busybox"
image images/busybox.tar docker.io/library/busybox:1.35 '"Cmd":["sh"]' "$busybox"

etcd=$(tree etcd)
with_libraries "$etcd" usr/bin/etcd usr/bin/etcdctl
shell "$etcd"
image images/etcd.tar "$registry/etcd:3.4.13-0" '"Cmd":["etcd"]' "$etcd"

# Each rule that kube-proxy writes loads a plugin.
proxy=$(tree kube-proxy)
plugins=$(cd "$root" && find "usr/lib/$multiarch/xtables" ! -type d | sort)
# shellcheck disable=SC2086  # paths without spaces
with_libraries "$proxy" usr/sbin/xtables-nft-multi usr/sbin/conntrack $plugins
xtables_names "$proxy/usr/sbin"
shell "$proxy"

for version in $versions; do
  for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy; do
    tree=$trees/$program
    [[ -d $tree ]] || tree "$program" >/dev/null
    cp "$work/bin/$version/$program" "$tree/usr/local/bin/$program"
    image "versions/$version/images/$program.tar" "$registry/$program:$version" "\"Cmd\":[\"$program\"]" "$tree"
  done
done
