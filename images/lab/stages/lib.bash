# Sourced by the stages that run the Debian tree's own tools, of its versions instead of this machine's.
tools=$work/tools

# usage: enter_tools    mounts the tree read-only at $tools, with $work at /mnt inside
enter_tools() {
    mkdir -p "$tools"
    mount --bind "$tree/root" "$tools"
    mount -o remount,bind,ro "$tools"
    mount -t proc proc "$tools/proc"
    mount -t tmpfs tmpfs "$tools/tmp"
    mount -t tmpfs -o mode=0755 tmpfs "$tools/dev"
    mknod -m 0666 "$tools/dev/null" c 1 3
    mknod -m 0666 "$tools/dev/urandom" c 1 9
    mount --bind "$work" "$tools/mnt"
}

in_tools() {
    chroot "$tools" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C TZ=UTC \
        SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" OSTREE_SUPPRESS_SYNCFS=1 "$@"
}
