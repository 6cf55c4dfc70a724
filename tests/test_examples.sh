#!/usr/bin/env bash
# The programs of docs/examples, one for every public header, built as a stranger would build them (headers and libcmkd.so, every
# warning an error), run, and their output looked at.
set -u
cd "$(dirname "$0")/.."
build=${CMKD_BUILD:-$PWD/build} passed=0 failed=0 skipped=''
finish() {
  echo "[  PASSED  ] $passed test(s)."
  [ -z "$skipped" ] || printf '[  SKIPPED ] %d test(s), listed below:\n' "$(wc -w <<< "$skipped")"
  for name in $skipped; do echo "[  SKIPPED ] $name"; done
  [ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
  exit $((failed != 0))
}
skip() { echo "SKIP: $2"; skipped="$skipped $1"; } # NAME, WHY
check() { # NAME, COMMAND...
  local name=$1 output; shift
  if output=$("$@" 2>&1); then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$name: FAILED: $*"; echo "$output" | tail -n 20; fi
}
work=$(mktemp -d "${TMPDIR:-/tmp}/cmkd-examples-XXXXXX"); trap 'rm -rf "$work"' EXIT
export LD_LIBRARY_PATH=$build:$build/simt${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
flags=(-std=c17 -Wall -Wextra -Wpedantic -Werror -Iinclude)
if nm -D "$build/libcmkd.so" | grep -q __asan_init; then flags+=(-fsanitize=address,undefined); fi

# Two IDX splits of 60 and 50 images, 28 x 28, whose pixels are whatever text lies here.
idx() { # FILE-PREFIX, COUNT
  local size labels='' i
  size=$(printf '\\%03o' "$2")
  { printf "\\000\\000\\010\\003\\000\\000\\000$size\\000\\000\\000\\034\\000\\000\\000\\034"; cat tests/*.c | head -c $((784 * $2)); } > "$1-images-idx3-ubyte"
  for ((i = 0; i < $2; i++)); do labels+=$(printf '\\%03o' $((i % 10))); done
  printf "\\000\\000\\010\\001\\000\\000\\000$size$labels" > "$1-labels-idx1-ubyte"
}
mkdir "$work/mnist"; idx "$work/mnist/train" 60; idx "$work/mnist/t10k" 50
data=mnist:$work/mnist

# NAME, EXTENDED REGULAR EXPRESSION that the output must match, ARGUMENTS...
run() {
  local name=$1 wanted=$2; shift 2
  if "$work/$name" "$@" > "$work/$name.out" 2>&1 && grep -qE -- "$wanted" "$work/$name.out"; then passed=$((passed + 1)); return; fi
  failed=$((failed + 1))
  echo "$name $*: FAILED: exit status or output, which should say $wanted:"; tail -n 20 "$work/$name.out"
}
compile() { check "compile $1" ${CC:-cc} "${flags[@]}" -o "$work/$1" "docs/examples/$1.c" "${@:2}" -L"$build" -lcmkd -lm; }

for header in include/cmkd/*.h; do
  name=cmkd/$(basename "$header")
  check "an example includes $name" grep -qE "^#include [<\"]$name[>\"]" docs/examples/*.c
done

# in the order of what they need of each other
names=$(ls docs/examples/*.c | sed 's|.*/||; s|\.c$||' | grep -vxE 'build|cache|train')
for name in $names build cache train; do
  [ -e "docs/examples/$name.c" ] || continue
  if [ "$name" = loss_cuda ]; then
    if [ -e "$build/simt/libcmkd-cuda.so" ]; then # device memory is host memory there
      compile loss_cuda -Itests/examples -L"$build/simt" -lcmkd-cuda
      [ ! -e "$work/loss_cuda" ] || LD_LIBRARY_PATH=$build/simt:$LD_LIBRARY_PATH run loss_cuda '^loss 2\.180918$'
    else
      skip loss_cuda 'loss_cuda needs the emulated device (tests/simt)'
    fi
    continue
  fi
  compile "$name"
  [ -e "$work/$name" ] || continue
  case $name in
    status) run status "^crop\+flip: 162 variants$"; run status "did you mean 'crop'" ;;
    views) run views '^clean: shifted by \(0, 0\)$'; run views '^epoch 4: view [0-3], samples( [0-9]){10}$' ;;
    weights) run weights '^fc\.weight: F32, shape \(2, 3\), 24 bytes$' "$work/w.safetensors" ;;
    dataset) run dataset '^mnist/train: 60 images of 28 x 28 x 1, 10 classes' "$data" ;;
    loss) run loss '^loss 2\.180918$'; run loss '^ce:1\+cmkd' ce+cmkd ;;
    teacher) run teacher '^50 test images: the teacher saw 64, in batches of 32$' "$data" ;;
    build)
      run build '60 samples x 3 views, 180 rows computed, 0 found$' "$data" "$work/c.h5"
      run build '60 samples x 3 views, 0 rows computed, 180 found$' "$data" "$work/c.h5" ;;
    cache) run cache '^teacher class means ' "$work/c.h5" ;;
    train) run train 'student-2: loss ' "$data" "$work/c.h5" "$work/runs" ;;
    *) run "$name" . ;; # needs no argument, says something
  esac
done
if [ -s "$work/loss.out" ] && [ -s "$work/loss_cuda.out" ]; then
  "$work/loss" > "$work/loss.out"
  check 'loss and loss_cuda say the same' bash -c "diff <(grep -E '^(loss|gradient)' '$work/loss.out') <(grep -E '^(loss|gradient)' '$work/loss_cuda.out')"
fi
finish
