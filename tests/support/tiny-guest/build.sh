#!/bin/sh
# Builds OUT/vmlinuz and OUT/initrd.gz: a Linux guest that boots in seconds under TCG and writes to all of its disks.
#
#   build.sh OUT
#
# Kernel, modules and busybox come from Debian packages (apt-get download: no root needed), the writer from writer.c
# beside this script. Does nothing when OUT is complete; several builds at once wait for each other. Needs apt-get,
# dpkg-deb, gcc with a static libc (libc6-dev) and flock.
#
# With "files" among the kernel's words it writes files to an ext4 on its first disk instead, beside a qemu-ga.
#
# Boot: qemu-system-x86_64 -accel tcg -cpu max -m 256 -kernel OUT/vmlinuz -initrd OUT/initrd.gz \
#         -append "console=ttyS0 quiet panic=-1" ... -device virtio-blk-pci,...
# The serial console takes the words of writer.c.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?"usage: build.sh OUT"}
mkdir -p "$(dirname "$out")"
exec 9> "$out.lock"
flock 9
if [ -e "$out/vmlinuz" ] && [ -e "$out/initrd.gz" ]; then exit 0; fi

work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# _apt cannot write into a folder of mode 0700, which only costs it a warning.
package() {
    apt-get download -q "$1" > log 2>&1 || {
        cat log >&2
        echo "tiny-guest: cannot download $1: run 'apt-get update' or look at the network" >&2
        exit 1
    }
    dpkg-deb -x "$1"_*.deb "$2"
}

linux=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
[ -n "$linux" ] || { echo "tiny-guest: apt knows no linux-image-cloud-amd64: run 'apt-get update'" >&2; exit 1; }
package "$linux" kernel
package busybox-static busybox
package qemu-guest-agent agent

mkdir -p root/bin root/proc root/sys root/dev root/modules
cp busybox/bin/busybox root/bin/ 2> /dev/null || cp busybox/usr/bin/busybox root/bin/
for word in sh mount insmod sleep cat echo ls poweroff grep dd; do ln -s busybox root/bin/$word; done
gcc -O2 -Wall -Werror -static -o root/bin/writer "$here/writer.c"

# Its libraries are those of this machine's QEMU, which has the same.
mkdir -p root/mnt root/var/run root/run root/lib64
cp agent/usr/sbin/qemu-ga root/bin/
libraries=$(ldd agent/usr/sbin/qemu-ga)
case $libraries in *"not found"*)
    echo "tiny-guest: libraries of qemu-ga are missing: install qemu-system-x86: $libraries" >&2
    exit 1
    ;;
esac
for library in $(echo "$libraries" | grep -o '/[^ ]*'); do
    mkdir -p "root$(dirname "$library")"
    cp -L "$library" "root$library"
done

modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk
    virtio_console crc16 crc32c_generic libcrc32c mbcache jbd2 ext4"
for module in $modules; do
    find kernel/lib/modules kernel/usr/lib/modules -name "$module.ko*" -exec cp {} root/modules/ \; 2> /dev/null || true
    ls root/modules/"$module".ko* > /dev/null 2>&1 || echo "tiny-guest: $module is built in" >&2
done
for compressed in root/modules/*.xz; do [ -e "$compressed" ] && xz -d "$compressed"; done

cat > root/init <<'INIT'
#!/bin/sh
mount -t proc p /proc
mount -t sysfs s /sys
mount -t devtmpfs d /dev
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk \
    virtio_console crc16 crc32c_generic libcrc32c mbcache jbd2 ext4; do
    [ -e /modules/$module.ko ] && insmod /modules/$module.ko
done
for try in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/vda ] && break; sleep 0.2; done
if grep -q files /proc/cmdline; then
    mount -t ext4 /dev/vda /mnt
    for try in 1 2 3 4 5 6 7 8 9 10; do ls /dev/vport*p1 > /dev/null 2>&1 && break; sleep 0.2; done
    qemu-ga --method virtio-serial --path /dev/vport*p1 &
    echo "WRITER ready writes=0 errors=0 errno=0 maxlat_ms=0 p50_us=0 p999_us=0"
    while :; do
        for file in 0 1 2 3 4 5 6 7; do dd if=/dev/urandom of=/mnt/$file bs=32k count=2 2> /dev/null; done
    done
fi
/bin/writer /dev/vd?
poweroff -f
INIT
chmod +x root/init
(cd root && find . | ../root/bin/busybox cpio -o -H newc 2> /dev/null | gzip -1 > ../initrd.gz)

# The kernel last: it is what says that the folder is complete.
mkdir -p "$out"
mv initrd.gz "$out/initrd.gz"
cp kernel/boot/vmlinuz-* "$out/vmlinuz.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"
