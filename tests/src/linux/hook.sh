#!/bin/sh
# What the agent of a Linux guest runs when it is told of a migration: says so, and what the agent has cost so far. See `agent.rs`.
while read -r name value _; do
    [ "$name" = VmRSS: ] && rss_kib=$value
done <"/proc/$PPID/status"
read -r cpu_ns _ <"/proc/$PPID/schedstat"
read -r uptime_s _ </proc/uptime
echo "hook $1 uptime_s=$uptime_s cpu_ns=$cpu_ns rss_kib=$rss_kib"
