#!/bin/sh
# Stands before a program that the updater runs on a node, and does harm at the steps of /var/lib/faults/plan, once each:
#   <before|during|after> <step> <kill|power>
# A line is moved to /var/lib/faults/done, and on the disk there, before its harm is done.
place=/var/lib/faults
program=${0##*/}
real=/usr/bin/$program
stage() { grep -q "\"stage\": *\"$1\"" /var/lib/nkd-agent/update.json; }
case "$program $*" in
"ostree static-delta "*) step=apply ;;
"ostree pull "*) step=pull ;;
"ostree admin deploy "*) step=stage ;;
"unshare "*/nkd-boot-counter.cfg*) step=count ;;
"unshare "*" set boot_counter="*) step=arm ;;
"ostree admin lock-finalization "*) step=unlock ;;
"systemctl reboot") if stage revert-restart; then step=restart-back; else step=restart; fi ;;
"systemctl list-units "*) if stage check; then step=gate; else exec "$real" "$@"; fi ;;
"unshare "*" unset boot_counter")
    if stage confirm; then step=confirm; elif stage settle; then step=settle; else exec "$real" "$@"; fi ;;
"ostree admin set-default "*) step=revert ;;
*) exec "$real" "$@" ;;
esac

# Whether harm is planned here; then it is, from now on, done.
planned() {
    for kind in kill power; do
        if grep -qx "$1 $step $kind" "$place/plan" 2>/dev/null; then
            echo "$1 $step $kind" >>"$place/done"
            grep -vx "$1 $step $kind" "$place/plan" >"$place/plan.new"
            mv "$place/plan.new" "$place/plan"
            sync -f "$place"
            return 0
        fi
    done
    return 1
}
harm() {
    echo "faults: $1 $step $kind" >/dev/console
    case $kind in
    power) echo b >/proc/sysrq-trigger ;;
    # systemd ends what the updater has started, this script too, when the updater itself is gone.
    kill) /usr/bin/systemctl kill --kill-who=main --signal=KILL nkd-updater ;;
    esac
    sleep 60
}

if planned before; then harm before; fi
if planned during; then
    "$real" "$@" &
    # A machine that goes down ends the updater and what it has started: not this.
    trap '' TERM
    sleep "${FAULTS_DELAY:-2}"
    harm during
fi
"$real" "$@"
code=$?
if planned after; then harm after; fi
exit $code
