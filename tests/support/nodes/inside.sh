#!/bin/sh
# What runs as pid 1 of a node's namespaces: gives the node a file system of its own where it matters, then only reaps.
#
#   inside.sh FOLDER   FOLDER/disk is what outlives a power cut; FOLDER/up is made when everything is in place
#
# The daemons are started from outside, into these namespaces. When this ends, the kernel ends all of them, and with the
# last of them go every mount and interface.
set -eu
disk=$1/disk

# Bidirectional mount propagation works between pods and node, and stops at the node: unshare made the tree private.
mount --make-rshared /

# The machine may be a Driftline host itself, and the node is not to take its guests and repositories for its own: on a new
# node these folders are not there, as an overlay says it.
if [ ! -e "$disk/.begun" ]; then
    for place in etc/driftline var/lib/driftline var/lib/machines; do
        mkdir -p "$disk/$(dirname "$place")"
        [ -e "$disk/$place" ] || mknod "$disk/$place" c 0 0
    done
    touch "$disk/.begun"
fi
# The machine's other files can be read, but those in /srv, and whatever is written goes to the node's disk.
mkdir -p "$disk/.work/none"
for place in etc var srv opt; do
    [ -d "/$place" ] || continue
    mkdir -p "$disk/$place" "$disk/.work/$place"
    lower=/$place
    [ "$place" != srv ] || lower=$disk/.work/none
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$disk/$place,workdir=$disk/.work/$place" "/$place"
done
# containerd's snapshots are overlays themselves, and these do not lie on one another.
for place in containerd kubelet; do
    mkdir -p "/var/lib/$place" "$disk/$place"
    mount --bind "$disk/$place" "/var/lib/$place"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock /run/driftline-node

# kubelet sets these for the whole machine: it gets files of its own instead. Each start of a node is another boot.
instead() { # SYSCTL VALUE
    file=/run/driftline-node/$(echo "$1" | tr / .)
    echo "$2" > "$file"
    mount --bind "$file" "/proc/sys/$1"
}
instead vm/overcommit_memory 1
instead vm/panic_on_oom 0
instead kernel/panic 10
instead kernel/panic_on_oops 1
instead kernel/keys/root_maxkeys 1000000
instead kernel/keys/root_maxbytes 25000000
instead kernel/random/boot_id "$(cat /proc/sys/kernel/random/uuid)"

echo 1 > /proc/sys/net/ipv4/ip_forward
touch "$1/up"
# The shell waits for any child while it waits for this one: what the node's processes leave behind is reaped.
while :; do sleep 3600; done
