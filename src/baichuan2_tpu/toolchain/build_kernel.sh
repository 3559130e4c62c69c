#!/bin/sh
# Build one TPU kernel while a net is compiled: ppl-compile to C, then one call of the C compiler.
# Installed as bin/ppl_jit.sh, the name that libppl_host.so looks up on PATH. Against the wheel's own script
# it needs neither cmake nor make, and remembers which block sizes do not fit the chip's memory.
# Source: bin/ppl_jit.sh, deps/scripts/DescDevice.cmake and deps/chip/tpu_6_0/config_common.cmake of
# cross_toolchains/ppl_compile in tpu_mlir 1.30.2 (the order of arguments, the exit codes, every flag).
set -eu
source=$1 name=$2 include=$3 out=$4 chip=$5 arguments=$6

if [ "$chip" != tpu_6_0 ]; then
  echo "kernels are built for tpu_6_0 (BM1684X) only, not for $chip" >&2
  exit 2
fi
refused=${PPL_CACHE_PATH%/}/refused/$(basename "$out")
if [ -s "$refused" ]; then
  exit "$(cat "$refused")"
fi

mkdir -p "$out/lib"
code=0
ppl-compile "$source" --I "$include" --x ir --chip "$chip" "-D__${chip}__" --O3 --desc --device \
  --const-arg "$arguments" --function "$name" -o "$out" || code=$?
case $code in
  0) ;;
  17 | 26) # local memory, L2 memory too small: the caller tries another block size
    echo "$code" >"$refused.$$"
    mv "$refused.$$" "$refused"
    exit "$code" ;;
  *) exit "$code" ;;
esac

common=$PPL_RUNTIME_PATH/common
kernel=$PPL_RUNTIME_PATH/chip/$chip/TPU1686
"$CC" -shared -fPIC -DDEBUG -D__bm1684x__ "-D__${chip}__" \
  -I"$out/include" -I"$common/dev/kernel" -I"$kernel/kernel/include" -I"$common/host/include" \
  -I"$common/dev/utils/include" -I"$kernel/common/include" \
  -Wl,--no-undefined "-Wl,-soname,lib$name.so" \
  -o "$out/lib/.lib$name.so.$$" "$out"/device/*.c "$common/dev/utils/src/ppl_helper.c" \
  "$TPUC_ROOT/lib/libbackend_bm1684x.so" "-Wl,-rpath,$TPUC_ROOT/lib" -lm
mv "$out/lib/.lib$name.so.$$" "$out/lib/lib$name.so"
