#!/usr/bin/env bash
# make gpu-kit, unpacked into an empty folder and used there with an empty environment, as on a machine that has none of
# our libraries; make gpu-data in pieces; and the tests on a device, which go on in a new process after one was killed.
set -u
cd "$(dirname "$0")/.."
export CMKD_BUILD=${CMKD_BUILD:-$PWD/build}
shared=${CMKD_SHARED:-../shared} passed=0 failed=0
world=$(mktemp -d "${TMPDIR:-/tmp}/cmkd-gpu-kit-XXXXXX"); child=
trap '[ -z "$child" ] || kill -9 "$child" 2> /dev/null; rm -rf "$world"' EXIT
check() { # NAME, CONDITION
  if eval "$2"; then passed=$((passed + 1)); return; fi
  failed=$((failed + 1)); echo "$1: FAILED: $2"; tail -n 30 "$world/log"
}
skip() { echo "SKIP: $1"; echo '[  SKIPPED ] 1 test(s), listed below:'; echo '[  SKIPPED ] gpu_kit'; exit 0; }
[ -e "$CMKD_BUILD/libcmkd-cuda.so" ] || skip 'the kit needs the CUDA toolkit'
ldd "$CMKD_BUILD/cmkd-train" 2> /dev/null | grep -q libasan && skip 'a sanitized build makes no kit'
python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2> /dev/null || skip 'bench/gpu/pack needs Python 3.9'
for tool in objdump objcopy ldd; do command -v $tool > /dev/null || skip "no $tool"; done
glibc=$(getconf GNU_LIBC_VERSION | sed 's/.* //')
newest() { sort -V | tail -n 1; }
[ "$(printf '%s\n' "$glibc" 2.36 | newest)" = 2.36 ] || skip "a kit is made where glibc is at most 2.36; it is $glibc"

flags=$(sed -E 's/--jobserver[^ ]*//g; s/(^| )-j[0-9]*//g' <<< "${MAKEFLAGS:-}")
prefix=$(sed -n 's/^prefix=//p' "$CMKD_BUILD/cmkd.pc") # as built: another one would rebuild
run_make() { env -u MFLAGS MAKEFLAGS="$flags" make -s BUILD="$CMKD_BUILD" PREFIX="$prefix" "$@" > "$world/log" 2>&1; }

# ---- what is in it
began=$SECONDS
check 'make gpu-kit' 'run_make gpu-kit'
seconds=$((SECONDS - began)) archive=$CMKD_BUILD/gpu-kit.tar.xz kit=$world/there/gpu-kit
check 'one archive of at most 30 MB' '[ "$(stat -c %s "$archive")" -le 30000000 ]'
mkdir "$world/there" "$world/home" "$world/elsewhere"
check 'Python unpacks it' 'python3 -m tarfile -e "$archive" "$world/there" > "$world/log" 2>&1'
check 'it is one folder' '[ "$(ls "$world/there")" = gpu-kit ]'
about() { python3 -c 'import json, sys; print(*json.load(open(sys.argv[1])))' "$kit/kit.json" 2> "$world/log"; }
check 'it says what it is' '[ "$(about)" = "version commit cuda cudnn_headers glibc made" ]'
mapfile -t texts < <(ls bench/gpu/*.py bench/gpu/run-all recipes/*.json bench/gpu/README.md 2> /dev/null)
same() { for f in "${texts[@]}"; do cmp "$f" "$kit/$f" || return; done; }
check 'scripts and recipes are along' 'same > "$world/log" 2>&1'
mapfile -t elf < <(find "$kit" -type f -exec sh -c 'head -c 4 "$1" | grep -q ELF && echo "$1"' - {} \;)
needed() { objdump -p "${elf[@]}" | grep -oE 'GLIBC_[0-9]+\.[0-9]+' | cut -d_ -f2; }
check 'no glibc newer than 2.36 is needed' '[ ${#elf[@]} -gt 20 ] && [ "$( (needed; echo 2.36) | newest)" = 2.36 ]'
check 'no oneDNN in it' '! ls "$kit/lib" | grep -q dnnl && ! objdump -p "${elf[@]}" | grep -q "NEEDED.*dnnl"'
fatbin() { objcopy -O binary --only-section=.nv_fatbin "$1" "$2"; }
stripped() { fatbin "$CMKD_BUILD/kit/libcmkd-cuda.so" "$world/a" && fatbin "$kit/libcmkd-cuda.so" "$world/b"; }
check 'stripping leaves device code and its lines' \
  'stripped && cmp "$world/a" "$world/b" && grep -qa nv_debug_line "$world/b"'

# ---- programs start by hand: no environment, another folder
alone() { # COMMAND...: output in $world/log, exit status in $status
  (cd "$world/elsewhere" && env -i HOME="$world/home" PATH=/usr/bin:/bin "$@") > "$world/log" 2>&1 < /dev/null
  status=$?
}
mapfile -t programs < <(cd "$kit" && ls cmkd-{cache,train} libcmkd-cuda.so bench/gpu/{agree,step,loss} tests/test_*)
check 'all programs are there' '[ ${#programs[@]} -eq $((6 + $(ls tests/simt/test_cuda_*.c | wc -l))) ]'
own='^(linux-vdso|/lib64/ld-linux-x86-64|lib(c|m|mvec|dl|rt|pthread|resolv|util|anl))\.so'
outside() { # lines of ldd for what is neither in lib/ nor the C library's own
  env -i ldd "$kit/$1" | sed 's/^\s*//' | grep -vE "$own" | grep -v "=> $kit/\([a-z/]*\.\./\)*lib/" > "$world/log"
}
for program in "${programs[@]}"; do check "$program finds its libraries in lib/" '! outside "$program"'; done
for program in cmkd-cache cmkd-train; do
  alone "$kit/$program" --version; check "$program --version" '[ $status -eq 0 ]'
  alone "$kit/$program" --help; check "$program --help" '[ $status -eq 0 ] && grep -q usage "$world/log"'
done

# ---- as far as the driver, or further where there is one
driver=; ls /dev/nvidia[0-9]* > /dev/null 2>&1 && driver=1
loads() { ! grep -qE 'error while loading|cannot load|there is no /|is not here' "$world/log"; }
none='no NVIDIA driver'
says_none() {
  if [ -n "$driver" ]; then loads; return; fi
  [ $status -eq 1 ] && grep -q "$none" "$world/log" && [ "$(wc -l < "$world/log")" -eq 1 ]
}
python3 - "$world/home" <<'PY'
import pathlib, struct, sys
for name, n in (('train', 64), ('t10k', 32)):
    file = lambda kind, data: pathlib.Path(sys.argv[1], f'{name}-{kind}-ubyte').write_bytes(data)
    file('images-idx3', struct.pack('>4i', 2051, n, 28, 28) + bytes(range(256)) * (n * 784 // 256))
    file('labels-idx1', struct.pack('>2i', 2049, n) + bytes(i % 10 for i in range(n)))
PY
small=(--arch resnet8 --batch 8)
alone "$kit/bench/gpu/step" "${small[@]}" --steps 2 --blocks 1 --images 64; check 'step' says_none
alone "$kit/bench/gpu/agree" "${small[@]}" --mode step --side 16; check 'agree' says_none
alone "$kit/cmkd-train" "${small[@]}" --device cuda --data "fashion-mnist:$world/home" --epochs 1 --out "$world/run"
check 'cmkd-train' says_none
alone "$kit/bench/gpu/loss" 1
check 'loss' '[ $status -eq 0 ] && { [ -n "$driver" ] || grep -q "^SKIP: no GPU here" "$world/log"; }'

count() { grep -c "$1" "$world/log"; }
names_of() { # of a source, in the order of its array
  sed -n '/^int main/,$p' "$1" | grep -oE '(cmocka_unit_test|TEST)\([a-z0-9_]+\)' | sed -E 's/.*\((.*)\)/\1/'
}
listed() { local IFS=,; echo "$*"; }
for program in "$kit"/tests/test_device_*; do
  name=$(basename "$program")
  mapfile -t names < <(names_of "tests/simt/${name/device/cuda}.c")
  if [ -n "$driver" ]; then # the first alone: all of them are a test of their own
    alone env CMKD_TESTS_DONE="$(listed "${names[@]:1}")" "$program"
    check "$name" 'loads && [ "$(count "RUN  ")" -eq 1 ]'
    continue
  fi
  alone "$program"; runs=$(count 'RUN  ')
  check "$name skips each test and says why" \
    '[ $status -eq 0 ] && [ $runs -ge 3 ] && [ "$(count "^SKIP: .*$none")" -eq $runs ]'
  alone env CMKD_TESTS_DONE="${names[0]},no_such_test,${names[1]}" "$program"
  check "$name leaves out what is done" '[ $status -eq 0 ] && [ "$(count "RUN  ")" -eq $((runs - 2)) ] &&
    ! grep -qE " (${names[0]}|${names[1]})$" "$world/log"'
  alone env CMKD_TESTS_DONE="${names[0]%?}" "$program"
  check "$name takes whole names" '[ "$(count "RUN  ")" -eq $runs ]'
  alone env CMKD_TESTS_DONE="$(listed "${names[@]}")" "$program"
  check "$name has nothing left to do" '[ $status -eq 0 ] && [ "$(count "RUN  ")" -eq 0 ] &&
    grep -qF "[  PASSED  ] 0 test(s)." "$world/log"'
done
emulated=$CMKD_BUILD/tests/test_cuda_kernels
if [ -x "$emulated" ]; then
  : > "$world/killed"
  "$emulated" > "$world/killed" 2>&1 < /dev/null & child=$!
  while kill -0 $child 2> /dev/null && ! grep -q ' OK ' "$world/killed"; do sleep 0.02; done
  kill -9 $child; wait $child 2> /dev/null; child=
  cp "$world/killed" "$world/log"
  mapfile -t ended < <(sed -nE 's/^\[ +OK \] //p' "$world/killed")
  mapfile -t names < <(names_of tests/simt/test_cuda_kernels.c)
  check 'a killed program has told what had ended' '[ ${#ended[@]} -gt 0 ] && ! grep -q "test(s) run" "$world/log"'
  alone env CMKD_TESTS_DONE="$(listed "${ended[@]}")" "$emulated"
  check 'a new one does the rest' '[ $status -eq 0 ] && [ "$(count " OK ")" -eq $((${#names[@]} - ${#ended[@]})) ]'
fi

# ---- what is carried beside it
image=$(ls "$shared"/data/cifar-100/*.jxl 2> /dev/null | head -n 1)
if [ -x "$kit/bin/djxl" ] && [ -n "$image" ]; then
  picture=$world/home/m.ppm # 1280 x 800 pixels of 3 bytes after a few bytes
  alone "$kit/bin/djxl" "$(realpath "$image")" "$picture"
  check 'djxl decodes' '[ "$(head -c 2 "$picture")" = P6 ] && [ "$(stat -c %s "$picture")" -gt 3072000 ]'
else echo "note: djxl was not tried: it or $shared/data/cifar-100 is not here"; fi
if [ -n "$image" ]; then
  check 'make gpu-data' 'CMKD_SHARED=$shared run_make gpu-data'
  pieces=("$CMKD_BUILD"/gpu-data/*.tar) there=$world/data/data
  check 'pieces of at most 25 MB' '[ ${#pieces[@]} -gt 1 ] && [ -z "$(find "${pieces[@]}" -size +25000000c)" ]'
  mkdir "$world/data"
  for piece in "${pieces[@]}"; do tar -xf "$piece" -C "$world/data"; done
  sizes() { (cd "$world/data" && find . -type f ! -name FILES -printf '%P %s\n' | sort); }
  check 'FILES lists them by size' 'diff <(sizes) <(cut -d" " -f1,2 "$there/cifar-100/FILES" | sort) > "$world/log"'
  sums() { (cd "$world/data" && awk '{ print $3 "  " $1 }' data/cifar-100/FILES | sha256sum --quiet -c); }
  check 'and by SHA-256' 'sums > "$world/log" 2>&1'
  check 'none is missing' 'diff <(ls "$shared/data/cifar-100") <(ls "$there/cifar-100" | grep -vx FILES) > "$world/log"'
else echo "note: gpu-data was not tried: $shared/data is not here"; fi

# ---- what is missing is said in one line
lacks() { # TARGET, WORDS
  local plain=(env -u MFLAGS MAKEFLAGS= CMKD_SHARED="$world/nothing" make -s BUILD="$world/none" NVCC=/none)
  ! "${plain[@]}" "$1" > /dev/null 2> "$world/log" &&
    grep -q "^$1: .*$2" "$world/log" && [ "$(grep -vcE '^make(\[[0-9]+\])?: ' "$world/log")" -eq 1 ]
}
check 'without nvcc' 'lacks gpu-kit "needs the CUDA toolkit"'
check 'without the data' 'lacks gpu-data "nothing/data/cifar-100 is not here; set CMKD_SHARED"'
echo "note: $(stat -c %s "$archive") bytes, packed in $seconds s"

echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
