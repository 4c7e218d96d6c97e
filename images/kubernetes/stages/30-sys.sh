#!/bin/bash
# Runtime tools to lay over the /usr of a Debian 12 machine. Its C library is used; all other libraries are here.
set -euo pipefail
. "$here/stages/lib.bash"
sys=$out/sys
programs=(usr/bin/{containerd,containerd-shim-runc-v2,ctr,etcd,etcdctl} usr/sbin/{runc,conntrack,ethtool,xtables-nft-multi})
plugins=$(cd "$root" && find usr/lib/cni "usr/lib/$multiarch/xtables" ! -type d | sort)
c_library=$(dpkg-deb --fsys-tarfile "$packages"/node/libc6_*.deb | tar -t | xargs -n1 basename | sort -u)
# others FILE...: the libraries they need beside the C library
others() { libraries "$@" | awk -F/ 'NR == FNR { own[$1]; next } !($NF in own)' <(echo "$c_library") -; }

# shellcheck disable=SC2086  # paths without spaces
files=("${programs[@]}" $plugins)
needed=$(others "${files[@]/#/$root/}")
# shellcheck disable=SC2086
copy "$sys" "${files[@]}" $needed
xtables_names "$sys/usr/sbin"
install -D -m 0755 "$here/crictl" "$sys/usr/local/bin/crictl"

# Half of Debian's programs use the libraries that socat wants: over the machine's own, older ones would do harm.
own=usr/lib/nkd-socat
mkdir -p "$sys/$own" "$sys/usr/bin"
cp --dereference "$root/usr/bin/socat" "$sys/$own/socat"
for library in $(others "$sys/$own/socat"); do cp --dereference "$root/$library" "$sys/$own/"; done
loader=$(readelf --program-headers --wide "$sys/$own/socat" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
printf '#!/bin/sh\nexec %s --library-path /%s /%s/socat "$@"\n' "$loader" "$own" "$own" >"$sys/usr/bin/socat"
chmod 0755 "$sys/usr/bin/socat"
