#!/bin/sh
# Runs the payload's command in the VM and powers it off: as PID 1 where nothing else was booted, or as a unit.
# Output goes to the first virtio port, the exit code to the second.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
if [ $$ = 1 ]; then
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tracefs tracefs /sys/kernel/tracing
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /tmp
    mkdir -p /dev/pts /dev/shm /run/netns
    mount -t devpts devpts /dev/pts
    mount -t tmpfs tmpfs /dev/shm
    ip link set lo up
    hostname lab
fi
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
modprobe -a virtio_console wireguard veth bridge nf_tables sch_netem
exec </dev/null >/dev/vport0p1 2>&1
# QEMU's emulation of several processors loses a race when the kernel patches its own code, and the kernel dies of a
# stale breakpoint. So the branches that tests would flip are flipped here and held: packet timestamps, tc's hooks, and
# netfilter's, these in a namespace of their own.
ping -q -i 86400 127.0.0.1 >/dev/null &
tc qdisc add dev lo clsact
cat >/tmp/held.nft <<'END'
table inet held {
    chain prerouting { type nat hook prerouting priority -100; ct state new; }
    chain input { type filter hook input priority 0; }
    chain forward { type filter hook forward priority 0; }
    chain output { type filter hook output priority 0; }
    chain postrouting { type nat hook postrouting priority 100; }
}
END
unshare --net sh -c 'nft -f /tmp/held.nft && exec sleep infinity' &
echo "lab: booted"
/lab/command.sh
echo $? >/dev/vport0p2
poweroff -f >/dev/console 2>&1
