#!/bin/sh
# First process of a Linux guest: makes a machine out of a kernel and runs the guest's program, which talks on the second
# serial port; everything else goes to the first. Its arguments are those behind `--` of the kernel's.
PATH=/bin:/usr/bin
export PATH
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
ip link set lo up
stty -F /dev/ttyS1 raw -echo
# Whoever started the machine may be gone; it shall not run for ever.
{ sleep 3600; poweroff -f; } &
# The kernel makes variables of parameters that it does not know: so much memory was in use once, and is free again.
if [ -n "$used_mib" ]; then
    mkdir /tmp/used
    mount -t tmpfs -o size=90% used /tmp/used
    # One block many times: to whoever moves the guest it is as good as random, and an emulated processor has it soon.
    dd if=/dev/urandom of=/tmp/block bs=1M count=1
    block=0
    while [ $block -lt "$used_mib" ]; do
        cat /tmp/block
        block=$((block + 1))
    done >/tmp/used/blocks
    umount /tmp/used
    rm /tmp/block
fi
if [ -e /lib/modules/order ]; then
    while read -r module; do
        insmod "/lib/modules/$module" || echo "init: $module was not loaded"
    done </lib/modules/order
    dunlin-agent --verbose &
fi
dunlin-guest-check "$@" </dev/ttyS1 >/dev/ttyS1
echo "init: the guest's program ended with exit code $?"
poweroff -f
