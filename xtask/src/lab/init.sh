#!/bin/sh
# The lab's first process: makes a machine out of a kernel, runs the tests it is told to, one after the other, and ends
# the machine. The kernel and this script write to the first serial port; what the second one carries is read by
# `results.rs`.
PATH=/bin:/usr/bin
export PATH
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm /run
mount -t tmpfs shm /dev/shm
ip link set lo up
. /lab/environment
while read -r module; do
    insmod "/lab/modules/$module" || echo "init: $module was not loaded"
done </lab/modules/order

if grep -q lab.shell /proc/cmdline; then
    cd /lab
    echo "The lab: tests and dunlin are in $(dirname "$DUNLIN_BIN"). Ctrl-D ends it, Ctrl-A X at once."
    setsid cttyhack sh
    poweroff -f
fi

stty -F /dev/ttyS1 raw -echo
# Whoever started the machine may be gone; it shall not run for ever.
{ sleep "$LAB_LIMIT_S"; poweroff -f; } &

read -r uptime _ </proc/uptime
echo "@ready $uptime" >/dev/ttyS1
while read -r number limit_s program test; do
    echo "@begin $number" >/dev/ttyS1
    # A session of its own, so that what a test leaves behind ends with it.
    setsid timeout -s KILL "$limit_s" "$program" --exact "$test" --nocapture --test-threads 1 \
        >/dev/ttyS1 2>&1 </dev/null &
    pid=$!
    wait $pid
    code=$?
    kill -KILL -$pid 2>/dev/null
    read -r uptime _ </proc/uptime
    printf '\n@end %s %s %s\n' "$number" "$code" "$uptime" >/dev/ttyS1
done </lab/plan
echo "@done" >/dev/ttyS1
poweroff -f
