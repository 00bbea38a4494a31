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
dunlin-guest-check "$@" </dev/ttyS1 >/dev/ttyS1
echo "init: the guest's program ended with exit code $?"
poweroff -f
