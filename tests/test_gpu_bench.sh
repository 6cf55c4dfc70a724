#!/usr/bin/env bash
# bench/gpu/run-all as a dry run on the CPU: killed in the middle of a training, gone on with in short slots; what was finished stays as it
# was, and the training that was cut ends with the weights of an uncut one.
set -u
cd "$(dirname "$0")/.."
export CMKD_BUILD=${CMKD_BUILD:-$PWD/build}
passed=0 failed=0
world=$(mktemp -d "${TMPDIR:-/tmp}/cmkd-gpu-bench-XXXXXX"); child=
trap '[ -z "$child" ] || kill "$child" 2> /dev/null; rm -rf "$world"' EXIT
check() { # NAME, CONDITION
  if eval "$2"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$1: FAILED: $2"; tail -n 30 "$world/log"; fi
}
skip() { echo "SKIP: $1"; echo '[  SKIPPED ] 1 test(s), listed below:'; echo '[  SKIPPED ] gpu_bench'; exit 0; }
python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2> /dev/null || skip 'bench/gpu/run-all needs Python 3.9'
ldd "$CMKD_BUILD/cmkd-train" 2> /dev/null | grep -q libasan && skip 'sanitized programs get nothing done in its short slots; what they do is tested elsewhere'
out=$world/out epochs=24
again=(bench/gpu/run-all --device cpu --tiny --out "$out" --seeds 1 --epochs $epochs --python /none)
# value FILE EXPRESSION: of the measurement `d`
value() { python3 -c "import json, sys; d = json.load(open(sys.argv[1])); print($2)" "$out/$1" 2>> "$world/log"; }

check 'the help fits a screen' '[ "$(bench/gpu/run-all --help | wc -l)" -le 40 ]'
bench/gpu/run-all --seconds 5 --device cpu > "$world/log" 2>&1; status=$?
check 'the CPU is for dry runs' '[ $status -eq 2 ] && grep -q -- --tiny "$world/log"'

"${again[@]}" --seconds 300 > "$world/log" 2>&1 < /dev/null & child=$!
first=$out/runs/ce--seed-1
for ((i = 0; i < 3000; i++)); do [ "$(cat "$first/log.jsonl" 2> /dev/null | wc -l)" -ge 2 ] && break; kill -0 $child 2> /dev/null || break; sleep 0.02; done
kill -9 $child; wait $child 2> /dev/null; child=
check 'killed in its first student' '[ -s "$first/state.safetensors" ] && [ ! -e "$out/5-published.json" ]'
mkdir "$world/kept"; cp "$out"/[1-4]-*.json "$out"/[1-4]-*.md "$world/kept"

slots=0 status=3 cut=0
while [ $status -eq 3 ] && [ $slots -lt 30 ]; do
  "${again[@]}" --seconds $((2 + slots)) > "$world/log" 2>&1 < /dev/null; status=$?
  slots=$((slots + 1)); [ $status -ne 3 ] || cut=$((cut + 1))
done
check 'short slots come to the end' '[ $status -eq 0 ]'
check 'what was finished is kept' '(for f in "$world"/kept/*; do cmp "$f" "$out/$(basename "$f")" || exit 1; done)'
check 'agreement within its limits' '[ "$(value 1-agreement.json "all(c[\"device\"][\"within\"] for c in d[\"cases\"].values()) and len(d[\"cases\"])")" = 2 ]'
check 'throughput of our steps, PyTorch left out by name' '[ "$(value 2-throughput.json "[c for c in d[\"cases\"].values()][0][\"runs\"][\"ours\"][0][\"img_per_s\"] > 0 and \"eager\" in d[\"cases\"][\"resnet8 batch 8\"][\"left_out\"]")" = True ]'
check 'the cache, all views' '[ "$(value 3-cache.json "d[\"cases\"][\"build\"][\"build\"][\"views\"]")" = 162 ] && "$CMKD_BUILD/cmkd-cache" verify "$out/teacher.h5" > "$world/log" 2>&1'
check 'epochs offline and online' '[ "$(value 4-live.json "min(d[\"cases\"][\"epochs\"][\"offline\"] + d[\"cases\"][\"epochs\"][\"online\"]) > 0")" = True ]'
check 'six losses and three numbers of views, to their last epoch' '[ "$(value 5-published.json "sum(c[\"done\"] and c[\"epochs\"] == $epochs for c in d[\"cases\"].values())")" = 9 ]'
check 'every row of the table' '[ "$(grep -cE "^\| (CE|KD|DKD|CMKD, easy-spearman|CMKD, hard-spearman|DKD\+CMKD|1|4|16|all) \| 1 \| [0-9.]+ \| [0-9.]+" "$out/5-published.md")" = 10 ]'
check 'each epoch once' 'cmp <(sed "s/.*\"epoch\":\([0-9]*\).*/\1/" "$first/log.jsonl") <(seq $epochs)'
data=fashion-mnist:$out/tiny
OMP_NUM_THREADS=1 "$CMKD_BUILD/cmkd-train" --student resnet8 --batch 16 --lr 0.05 --augment crop+flip --device cpu --threads 1 --quiet --json --cache "$out/teacher.h5" --data "$data" --loss ce --epochs $epochs --seed 1 \
  --out "$world/uncut" > "$world/uncut.json" 2> "$world/log" < /dev/null
check 'cut and resumed is the same as uncut' 'grep -q "\"last_sha256\":\"$(value 5-published.json "d[\"cases\"][\"CE, seed 1\"][\"sha256\"]")\"" "$world/uncut.json"'
"${again[@]}" --seconds 5 > "$world/log" 2>&1 < /dev/null; status=$?
check 'then nothing is left' '[ $status -eq 0 ] && grep -q "nothing is left to do" "$world/log" && ! grep -q "^    /" "$world/log"'
"${again[@]}" --seconds 5 --epochs 3 > "$world/log" 2>&1 < /dev/null; status=$?
check 'other settings need another folder' '[ $status -eq 1 ] && grep -q "epochs $epochs, not 3" "$world/log"'
echo "note: $slots slots, $cut cut"

echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
