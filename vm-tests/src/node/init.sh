# The first process of a node, in namespaces of its own: makes the root of the node's files and becomes systemd.
# From the environment: NODE (its name), DISK (the folder of its disk), LOG (what is to be /var/log), HOSTS (what is to be
# /etc/hosts), USR (the lower layers of /usr), CONSOLE (a terminal), BOOT_ID, HIERARCHIES (of control groups).
set -eu
mount --make-rprivate /
hostname "$NODE"
root=$DISK/root
mount --bind "$root" "$root"

layer() { # its name, its lower layers
    mount -t overlay overlay -o "lowerdir=$2,upperdir=$DISK/$1/upper,workdir=$DISK/$1/work" "$root/$1"
}
layer usr "$USR"
for folder in etc var opt; do layer $folder /$folder; done
# The store of containers is itself made of overlays, which cannot lie on one.
for state in containerd kubelet etcd; do
    mkdir -p "$root/var/lib/$state"
    mount --bind "$DISK/state/$state" "$root/var/lib/$state"
done
mount --bind "$LOG" "$root/var/log"
# All of it: units, generators and settings of this computer are none of the node's.
mount --bind "$DISK/systemd" "$root/etc/systemd"
mount --bind "$HOSTS" "$root/etc/hosts"

# Devices of its own, so that nobody finds a disk, a clock or a watchdog of this computer. What is written to the kernel's
# log goes nowhere.
mount -t tmpfs -o mode=755,size=1m dev "$root/dev"
device() { mknod -m "$2" "$root/dev/$1" c "$3" "$4"; }
device null 666 1 3
device zero 666 1 5
device full 666 1 7
device random 666 1 8
device urandom 666 1 9
device tty 666 5 0
device kmsg 600 1 3
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for stream in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${stream%:*}" "$root/dev/${stream#*:}"; done
: > "$root/dev/console"
mount --bind "$CONSOLE" "$root/dev/console"

mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -o remount,bind,ro "$root/sys"
mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
for hierarchy in $HIERARCHIES; do
    folder=$root/sys/fs/cgroup/${hierarchy#name=}
    mkdir "$folder"
    case $hierarchy in
    name=*) mount -t cgroup -o "none,$hierarchy" cgroup "$folder" ;;
    *,*)
        mount -t cgroup -o "$hierarchy" cgroup "$folder"
        for one in $(echo "$hierarchy" | tr , ' '); do ln -s "$hierarchy" "$root/sys/fs/cgroup/$one"; done
        ;;
    *) mount -t cgroup -o "$hierarchy" cgroup "$folder" ;;
    esac
done

cd "$root"
pivot_root . mnt
umount -l /mnt

# Most kernel settings are of the whole machine: only those of the network, which are the node's own, can be written. The
# kubelet insists on some: it finds what it wants in files of this node.
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,rw /proc/sys/net
[ ! -e /proc/sysrq-trigger ] || mount --bind /dev/null /proc/sysrq-trigger
mkdir -p /run/nkd-vm
own() {
    file=/run/nkd-vm/$(echo "$1" | tr / .)
    echo "$2" > "$file"
    mount --bind "$file" "/proc/sys/$1"
}
own kernel/random/boot_id "$BOOT_ID"
own vm/overcommit_memory 1
own vm/panic_on_oom 0
own kernel/panic 10
own kernel/panic_on_oops 1
own kernel/keys/root_maxkeys 1000000
own kernel/keys/root_maxbytes 25000000
mount --make-rshared /
# The last two words are for a kernel's command line, which systemd in a container takes from its own: all groups are of
# version 1, and none is made in the tree of version 2, where the node has no place of its own.
exec env -i container=nkd-vm PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no \
    systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1
