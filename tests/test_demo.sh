#!/usr/bin/env bash
# recipes/demo.sh from end to end on a made-up data set, then again: the second run must find everything done and say the same.
set -u
cd "$(dirname "$0")/.."
export CMKD_BUILD=${CMKD_BUILD:-$PWD/build}
passed=0 failed=0
world=$(mktemp -d "${TMPDIR:-/tmp}/cmkd-demo-XXXXXX"); trap 'rm -rf "$world"' EXIT
check() { # NAME, CONDITION
  if eval "$2"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$1: FAILED: $2"; tail -n 40 "$world/$3" "$world/$3.err"; fi
}
big_endian() { printf "\\$(printf %03o $(($1 >> 24 & 255)))\\$(printf %03o $(($1 >> 16 & 255)))\\$(printf %03o $(($1 >> 8 & 255)))\\$(printf %03o $(($1 & 255)))"; }
noise() { LC_ALL=C awk -v n="$1" -v seed="$1" 'BEGIN { srand(seed); while (n--) printf "%c", 1 + int(rand() * 255) }'; } # n bytes
images() { printf '\0\0\10\3'; big_endian "$1"; big_endian 28; big_endian 28; noise $(($1 * 784)); }
labels() { printf '\0\0\10\1'; big_endian "$1"; for ((i = 0; i < $1; i++)); do printf "\\$(printf %03o $((i % 10)))"; done; }
mkdir "$world/data"
images 256 > "$world/data/train-images-idx3-ubyte"; labels 256 > "$world/data/train-labels-idx1-ubyte"
images 64 > "$world/data/t10k-images-idx3-ubyte"; labels 64 > "$world/data/t10k-labels-idx1-ubyte"
demo() { CMKD_DEMO_DATA=$1 CMKD_DEMO_SAMPLES=128 recipes/demo.sh "$world/demo" > "$world/$2" 2> "$world/$2.err" < /dev/null; }

demo "fashion-mnist:$world/nothing-here" missing; status=$?
check 'no data: says so and how to go on' '[ $status -eq 1 ] && grep -q nothing-here "$world/missing.err" && grep -q "make demo" "$world/missing"' missing
demo "fashion-mnist:$world/data" first; status=$?
check 'runs to the end' '[ $status -eq 0 ]' first
check 'one row for each student, all numbers' '[ "$(grep -cE "^(labels alone|KD|CMKD) +[0-9]+\.[0-9]+ +[0-9]+\.[0-9]+ +[0-9]+\.[0-9]" "$world/first")" = 3 ]' first
check 'the cost of a live teacher' 'grep -qE "^The teacher ran once, at [1-9][0-9]* images/s" "$world/first"' first
check 'the files are there' '[ -s "$world/demo/teacher/last.safetensors" ] && [ -s "$world/demo/teacher.h5" ] && [ -s "$world/demo/student-cmkd/log.jsonl" ]' first
check 'nothing temporary is left' '[ -z "$(find "$world/demo" -name "*.tmp")" ]' first
demo "fashion-mnist:$world/data" second; status=$?
check 'again: everything was done before' '[ $status -eq 0 ] && [ "$(grep -c "done before" "$world/second")" = 5 ]' second
check 'again: the same table' 'diff <(grep -A 99 "^== resnet8 on" "$world/first") <(grep -A 99 "^== resnet8 on" "$world/second") > /dev/null' second

echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
