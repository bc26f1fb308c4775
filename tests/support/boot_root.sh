#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# boot_root.sh ROOT CGROUP systemd|none: becomes process 1 of a Debian root, in namespaces that unshare(1) has made
# (debian_root.py calls it). The cgroup is one of its own, so that systemd finds itself at the top of a tree.
set -eu
root=$1 cgroup=$2 init=$3

if [ "${4:-}" != inside ]; then
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/$cgroup"
    echo 0 >"$root/sys/fs/cgroup/$cgroup/cgroup.procs"
    umount "$root/sys/fs/cgroup"
    exec unshare -C bash "$0" "$root" "$cgroup" "$init" inside
fi

mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
touch "$root/dev/console" # systemd writes there what it starts: into the test's folder
mount --bind "/proc/self/fd/1" "$root/dev/console"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
hostname walked
cd "$root"
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
touch /run/has-power
case $init in
    systemd) exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal ;;
    # Somebody has to reap orphans.
    none) exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -c 'while :; do sleep 60 & wait; done' ;;
esac
