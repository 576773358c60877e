#!/bin/bash
# Runs the machine code of the tables amx_bf16 and amx_int8 under Linux on an emulated processor with AMX.
#
#   kernels/emulator/run.sh BOCHS KERNEL [FOLDER]
#
# BOCHS: the folder `bochs` of its source, mended and built as README.md says. KERNEL: a bzImage
# of Linux 6.1 or later with a serial console. FOLDER: where to leave the image and the logs
# (default build/emulator). Exit status 0 only if everything in the guest was right.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
bochs=$(realpath "$1") kernel=$(realpath "$2")
mkdir -p "${3:-$root/build/emulator}"
out=$(realpath "${3:-$root/build/emulator}")
library=$root/build/native/libkosine_engine.a
bios=$bochs/bios/BIOS-bochs-latest
vga=$bochs/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
busybox=${BUSYBOX:-/bin/busybox}
isolinux=${ISOLINUX:-/usr/lib/ISOLINUX/isolinux.bin}
ldlinux=${LDLINUX:-/usr/lib/syslinux/modules/bios/ldlinux.c32}
for file in "$bochs/bochs" "$kernel" "$library" "$bios" "$vga" "$busybox" "$isolinux" "$ldlinux"; do
  [ -r "$file" ] || { echo "$file is missing; see kernels/emulator/README.md" >&2; exit 2; }
done

rm -rf "$out/guest" "$out/iso" "$out/serial" "$out/log"
mkdir -p "$out"/guest/{bin,proc,sys,dev} "$out/iso/isolinux"
src=$root/kernels/src
g++ -std=c++20 -O2 -Wall -Wextra -static -I"$src" "$root/kernels/emulator/machine_check.cpp" \
  "$library" -Wl,--whole-archive -lpthread -Wl,--no-whole-archive -o "$out/guest/machine_check"
g++ -std=c++20 -O2 -ffp-contract=off -Wno-uninitialized -Wno-maybe-uninitialized -static \
  -mavx512f -mavx512bw -mavx512vl -mfma -I"$src" "$root/tests/amx_tile_check.cpp" \
  -o "$out/guest/tile_check"
cp "$busybox" "$out/guest/bin/busybox"
cat > "$out/guest/init" <<'EOF'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
good=1
expect() {  # expect STATUS COMMAND...
  wanted=$1; shift
  "$@"; status=$?
  echo "$*: status $status"
  [ $status = $wanted ] || { good=0; echo "status $wanted was expected"; }
}
without_tiles() {
  found=$(/machine_check levels $1); echo "$found"
  case "$found" in
    *"best bfloat16: avx512_bf16"*"best int8: avx512_bf16"*) ;;
    *) good=0; echo "tiles should not be there" ;;
  esac
}
without_tiles refuse
without_tiles small-stack
for products in bfloat16 int8; do
  expect 0 /tile_check $products
  for fault in no-shapes released no-rows no-fit; do expect 132 /tile_check $products $fault; done
  for fault in too-many-rows rows-without-bytes; do expect 139 /tile_check $products $fault; done
done
expect 0 /machine_check
[ $good = 1 ] && echo "guest: right" || echo "guest: wrong"
$b sleep 1
$b poweroff -f
EOF
chmod +x "$out/guest/init"
(cd "$out/guest" && find . | cpio -o -H newc --quiet | gzip -1) > "$out/iso/initrd"
cp "$kernel" "$out/iso/vmlinuz"
cp "$isolinux" "$ldlinux" "$out/iso/isolinux/"
# no5lvl and the cleared features: what this emulator and Linux's self-patching do not get right
# together.
cat > "$out/iso/isolinux/isolinux.cfg" <<'EOF'
default linux
prompt 0
label linux
 kernel /vmlinuz
 append initrd=/initrd console=ttyS0 quiet nokaslr mitigations=off panic=-1 tsc=reliable lpj=1000000 no5lvl clearcpuid=smap,smep,erms,fsrm
EOF
xorriso -as mkisofs -quiet -o "$out/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
  -no-emul-boot -boot-load-size 4 -boot-info-table "$out/iso"
cat > "$out/bochsrc" <<EOF
config_interface: textconfig
display_library: nogui
memory: guest=1024, host=1024
romimage: file=$bios
vgaromimage: file=$vga
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
clock: sync=none, time0=1700000000
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$out/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$out/serial
log: $out/log
panic: action=fatal
error: action=report
info: action=report
EOF
"$bochs/bochs" -q -f "$out/bochsrc" < /dev/null > "$out/stdout" 2>&1 &
pid=$!
trap 'kill "$pid" 2>/dev/null || true' EXIT
end=$((SECONDS + ${LIMIT:-3600}))  # seconds
while kill -0 "$pid" 2>/dev/null && ((SECONDS < end)); do
  grep -aqE '^guest: |Kernel panic' "$out/serial" 2>/dev/null && break
  grep -aq 'with no resolution' "$out/log" 2>/dev/null && break
  sleep 1
done
tr -d '\r' < "$out/serial"
tr -d '\r' < "$out/serial" | grep -aqx 'guest: right'
