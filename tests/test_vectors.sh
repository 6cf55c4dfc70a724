#!/usr/bin/env bash
# check_vectors: passes on the golden losses, and fails, loudly and with its last line in shape, on what it must not wave through.
set -u
cd "$(dirname "$0")/.."
build=${CMKD_BUILD:-$PWD/build} golden=${CMKD_SHARED:-../shared}/golden/losses passed=0 failed=0
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
[ -x "$build/tests/check_vectors" ] || ${MAKE:-make} -s BUILD="$build" "$build/tests/check_vectors" > "$dir/log" 2>&1 || { tail -n 20 "$dir/log"; echo '[  FAILED  ] 1 test(s).'; exit 1; }

# expect NAME STATUS LAST-LINE PATTERN: runs check_vectors over $dir/NAME
expect() {
  local out status; out=$("$build/tests/check_vectors" "$dir/$1" 2>&1); status=$?
  if [ $status -eq "$2" ] && [ "$(tail -n 1 <<< "$out")" = "$3" ] && grep -q "$4" <<< "$out"; then passed=$((passed + 1))
  else failed=$((failed + 1)); printf '%s: exit %s, expected %s, "%s" and "%s" in\n%s\n' "$1" $status "$2" "$3" "$4" "$out"; fi
}
mkdir "$dir/empty" "$dir/broken"
expect empty 1 '0 passed, 0 failed' 'no \*.safetensors'
head -c 100 /dev/zero > "$dir/broken/x.safetensors"
expect broken 1 '0 passed, 1 failed' 'FAIL x.safetensors'
if [ -d "$golden" ]; then
  # change NAME SED-SCRIPT: one case with its header changed in place, length kept
  change() { mkdir "$dir/$1"; LC_ALL=C sed -e "$2" "$golden/046-cmkd-b16c100.safetensors" > "$dir/$1/case.safetensors"; }
  change same 's/x/x/'
  expect same 0 '1 passed, 0 failed' 'ref  *1 cases'
  change key 's/"kappa"/"kappb"/'
  expect key 1 '0 passed, 1 failed' "metadata key 'kappb'"
  change tensor 's/"entropy"/"entropz"/'
  expect tensor 1 '0 passed, 1 failed' "tensor 'entropz'"
  change value 's/"beta":\( *\)"4.0"/"beta":\1"4.1"/'
  expect value 1 '0 passed, 1 failed' 'ref: loss'
  change gate 's/easy-spearman/hard-spearman/'
  expect gate 1 '0 passed, 1 failed' 'cpu: loss'
  change wrong 's/easy-spearman/easy-spearmen/'
  expect wrong 1 '0 passed, 1 failed' "did you mean 'easy-spearman'"
  ln -s "$(realpath "$golden")" "$dir/golden"
  expect golden 0 "$(ls "$golden" | grep -c 'safetensors$') passed, 0 failed" 'cpu  *[0-9]* cases'
else
  echo "SKIP: $golden is not here (set CMKD_SHARED)"; echo '[  SKIPPED ] 7 test(s).'
fi
[ $passed -eq 0 ] || echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || { echo "[  FAILED  ] $failed test(s)."; exit 1; }
