#!/bin/bash
# The NestOS part of the initramfs: the live root file system, and what Ignition expects of a distribution.

check() { return 0; }

depends() { echo systemd systemd-networkd systemd-emergency ignition ostree; }

installkernel() {
    hostonly='' instmods virtio_net virtio_blk virtio_scsi virtio_rng nvme ahci sd_mod \
        squashfs loop overlay ext4 vfat nls_ascii nls_cp437 qemu_fw_cfg
}

# usage: install_unit NAME TARGET    the unit is required by the target
install_unit() {
    inst_simple "$moddir/$1.service" "$systemdsystemunitdir/$1.service"
    inst_script "$moddir/$1" "/usr/lib/nestos/$1"
    mkdir -p "$initdir/$systemdsystemunitdir/$2.requires"
    ln_r "$systemdsystemunitdir/$1.service" "$systemdsystemunitdir/$2.requires/$1.service"
}

install() {
    inst_multiple basename cat chmod cp curl cut grep journalctl losetup lsblk mkdir modprobe mount mountpoint mv partx \
        realpath resize2fs rm rmdir sed setsid sfdisk sha256sum sleep sync systemctl systemd-tmpfiles tail tune2fs udevadm umount xargs

    # Asked by Ignition's generator and by our units.
    inst_script "$moddir/is-live-image" /usr/bin/is-live-image
    inst_script "$moddir/nestos-live-generator" "$systemdutildir/system-generators/nestos-live-generator"
    inst_simple "$moddir/nestos-live-rootfs.service" "$systemdsystemunitdir/nestos-live-rootfs.service"
    inst_script "$moddir/nestos-live-rootfs" /usr/lib/nestos/nestos-live-rootfs
    inst_script "$moddir/network-up" /usr/lib/nestos/network-up

    install_unit nestos-ignition-setup-user ignition-complete.target
    install_unit nestos-ignition-neednet ignition-complete.target
    install_unit nestos-populate-var ignition-complete.target
    install_unit nestos-firstboot-disk ignition-diskful.target
    install_unit nestos-growroot ignition-diskful.target
    inst_simple /usr/lib/ignition/base.d/00-nest.ign

    # Since version 256 systemd keeps /usr of an initramfs read-only, where Ignition looks for user.ign.
    inst_dir /etc/systemd/system.conf.d
    printf '[Manager]\nProtectSystem=no\n' >"$initdir/etc/systemd/system.conf.d/10-nestos.conf"

    # Debian's Ignition is built to relabel for SELinux always: it opens /sysroot/etc/selinux/config and runs setfiles.
    inst_simple "$moddir/ignition-files-selinux.conf" "$systemdsystemunitdir/ignition-files.service.d/10-nestos.conf"
    inst_script "$moddir/setfiles" /usr/sbin/setfiles
    inst_script "$moddir/ignition-kargs-helper" /usr/sbin/ignition-kargs-helper

    inst_simple /usr/lib/systemd/journald.conf.d/10-nestos.conf

    inst_script /usr/lib/nestos/emergency
    inst_simple "$systemdsystemunitdir/emergency.service.d/10-nestos.conf"

    # The network comes up when the live root or Ignition needs it, and only then (network-up).
    rm -f "$initdir"/etc/systemd/system/*.wants/systemd-networkd*.service \
        "$initdir"/etc/systemd/system/sockets.target.wants/systemd-networkd.socket \
        "$initdir"/usr/lib/systemd/system/systemd-networkd-wait-online.service.d/99-dracut.conf \
        "$initdir/$systemdutildir/system-generators/systemd-gpt-auto-generator"
}
