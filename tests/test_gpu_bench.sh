#!/usr/bin/env bash
# bench/gpu/run-all without a GPU: a dry run on the CPU, killed in the middle of a training and gone on with in slots whose clock runs out at random;
# the same on the emulated plugin; and programs that fail, crash, hang or compute without cuDNN, made up.
# What was finished stays as it was, and the training that was cut ends with the weights of an uncut one.
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
RANDOM=${CMKD_TEST_SEED:=$((SECONDS + $$))}
echo "note: the clock runs out by CMKD_TEST_SEED=$CMKD_TEST_SEED"
unset OUT CMKD_CUDNN CMKD_CUDA_PLUGIN

# value FILE EXPRESSION: of the measurement `d`; results(case, run) of it
value() {
  python3 -c "import json, sys
d = json.load(open(sys.argv[1]))
result = lambda case, run: d['cases'][case]['runs'][run].get('result')
print($2)" "$1" 2>> "$world/log"
}
# in_slots COMMAND...: until nothing is left for later. Every slot but the last ends at a random moment, one in four by kill -9.
in_slots() {
  slots=0 killed=0 status=3
  while [ $status -eq 3 ] && [ $slots -lt 60 ]; do
    local seconds=$((1 + RANDOM % 5 + slots / 4)).$((1 + RANDOM % 9)) # more than --margin
    if [ $((RANDOM % 4)) -eq 0 ]; then
      "$@" --seconds 100 > "$world/log" 2>&1 < /dev/null & child=$!
      sleep "$seconds"; kill -9 $child 2> /dev/null; wait $child 2> /dev/null; child= status=3 killed=$((killed + 1))
    else
      "$@" --seconds "$seconds" > "$world/log" 2>&1 < /dev/null; status=$?
    fi
    slots=$((slots + 1))
  done
  [ $status -ne 3 ] || { "$@" --seconds 36000 > "$world/log" 2>&1 < /dev/null; status=$?; }
}

# ---- on the CPU -------------------------------------------------------------------------------------------------------------
out=$world/out epochs=24
again=(bench/gpu/run-all --device cpu --tiny --out "$out" --seeds 1 --epochs $epochs --python /none --tar "$world/results.tar.gz")
check 'the help fits a screen' '[ "$(bench/gpu/run-all --help | wc -l)" -le 50 ]'
bench/gpu/run-all --seconds 5 --device cpu > "$world/log" 2>&1; status=$?
check 'the CPU is for dry runs' '[ $status -eq 2 ] && grep -q -- --tiny "$world/log"'

"${again[@]}" --seconds 36000 > "$world/log" 2>&1 < /dev/null & child=$!
first=$out/runs/ce--seed-1
while kill -0 $child 2> /dev/null && [ "$(cat "$first/log.jsonl" 2> /dev/null | wc -l)" -lt 2 ]; do sleep 0.02; done
kill -9 $child; wait $child 2> /dev/null; child=
check 'killed in its first student' '[ -s "$first/state.safetensors" ] && [ ! -e "$out/9-published.json" ]'
mkdir "$world/kept"; cp "$out"/[2-8]-*.json "$world/kept"
check 'the archive holds what was finished' 'tar xzf "$world/results.tar.gz" -C "$world" && cmp "$world/results/8-live.json" "$out/8-live.json" && ! ls "$world/results" | grep -q shards'

in_slots "${again[@]}"
check 'short slots come to the end; only PyTorch is missing' '[ $status -eq 1 ] && ! grep -E "^[0-9]\. (failed|missing)" "$world/log" | grep -v "no Python with PyTorch"'
echo "note: CPU: $slots slots, $killed killed"
same_runs='all(a["cases"][c]["runs"][r] == d["cases"][c]["runs"][r] for c in a["cases"] for r in a["cases"][c]["runs"])'
check 'what was finished is kept' '(for f in "$world"/kept/*; do [ "$(value "$out/$(basename "$f")" "(lambda a: $same_runs)(json.load(open(\"$f\")))")" = True ] || exit 1; done)'
check 'agreement with a reference made before, within its limits' '[ "$(value "$out/5-agreement.json" "all(result(c, \"fp32, own\")[\"within\"] for c in (\"step resnet8\", \"curve resnet8\"))")" = True ]'
check 'our steps; PyTorch left out by name' '[ "$(value "$out/3-eager.json" "result(\"resnet8 batch 8\", \"ours\")[\"img_per_s\"] > 0")" = True ] && grep -q "missing: no Python with PyTorch.*eager, blocks" "$out/3-eager.md"'
check 'the cache, all views' '[ "$(value "$out/7-cache.json" "result(\"build\", \"all views\")[\"build\"][\"views\"]")" = 162 ] && "$CMKD_BUILD/cmkd-cache" verify "$out.work/teacher.h5" > "$world/log" 2>&1'
check 'epochs offline and online' '[ "$(value "$out/8-live.json" "min(result(\"epochs\", \"offline\") + result(\"epochs\", \"online\")) > 0")" = True ]'
check 'six losses and three numbers of views, to their last epoch' '[ "$(value "$out/9-published.json" "sum(r[\"result\"][\"epochs\"] == $epochs for c in d[\"cases\"].values() for r in c[\"runs\"].values())")" = 9 ]'
check 'every row of the table' '[ "$(grep -cE "^\| (CE|KD|DKD|CMKD, easy-spearman|CMKD, hard-spearman|DKD\+CMKD|1|4|16|all) \| 1 \| [0-9.]+ \| [0-9.]+" "$out/9-published.md")" = 10 ]'
check 'each epoch once' 'cmp <(sed "s/.*\"epoch\":\([0-9]*\).*/\1/" "$first/log.jsonl") <(seq $epochs)'
check 'weights of finished runs do not travel' '! ls "$out"/runs/*/*.safetensors > /dev/null 2>&1'
OMP_NUM_THREADS=1 "$CMKD_BUILD/cmkd-train" --student resnet8 --batch 16 --lr 0.05 --augment crop+flip --device cpu --threads 1 --quiet --json --cache "$out.work/teacher.h5" \
  --data "fashion-mnist:$out.work/tiny" --loss ce --epochs $epochs --seed 1 --out "$world/uncut" > "$world/uncut.json" 2> "$world/log" < /dev/null
check 'cut and resumed is the same as uncut' 'grep -q "\"last_sha256\":\"$(value "$out/9-published.json" "result(\"CE\", \"seed 1\")[\"sha256\"]")\"" "$world/uncut.json"'
"${again[@]}" --only 9 --seconds 5 > "$world/log" 2>&1 < /dev/null; status=$?
check 'then nothing is left' '[ $status -eq 0 ] && grep -q "nothing is left to do" "$world/log"'
"${again[@]}" --seconds 5 --epochs 3 > "$world/log" 2>&1 < /dev/null; status=$?
check 'other settings need another folder' '[ $status -eq 1 ] && grep -q "results of --epochs $epochs, not of --epochs 3" "$world/log"'
"${again[@]}" --out "$world/moved" --carried "$world/results.tar.gz" --only 9 --seconds 30 > "$world/log" 2>&1 < /dev/null; status=$?
check 'another machine goes on from the archive' '[ $status -eq 0 ] && cmp "$world/moved/9-published.json" "$out/9-published.json"'
mkdir "$world/carried"; "${again[@]}" --out "$world/other" --epochs 3 --carried "$world/results.tar.gz" --seconds 5 > "$world/log" 2>&1 < /dev/null; status=$?
check 'an archive of other settings is refused' '[ $status -eq 1 ] && grep -q "results.tar.gz holds results of --epochs $epochs, not of --epochs 3" "$world/log" && [ ! -e "$world/other/settings.json" ]'
check 'one page says what is done' 'grep -q "^| 9. Accuracies on CIFAR-100 | 9 | 0 | 0 | 0 |" "$world/moved/0-overview.md"'
head -c 1000 "$world/results.tar.gz" > "$world/carried/results.tar.gz"
"${again[@]}" --out "$world/broken" --carried "$world/carried" --seconds 30 > "$world/log" 2>&1 < /dev/null; status=$?
check 'a broken archive is refused in a line' '[ $status -eq 1 ] && [ "$(wc -l < "$world/log")" -eq 1 ] && grep -q "carried/results.tar.gz" "$world/log"'

# ---- the data, in pieces ------------------------------------------------------------------------------------------------------
data=${CMKD_SHARED:-../shared}/data/cifar-100
if [ -d "$data" ] && command -v djxl > /dev/null; then
  part=$world/carried-data/cifar-100
  mkdir -p "$part"
  (cd "$data" && stat -c 'data/cifar-100/%n %s x' -- *) > "$part/FILES"
  cp "$data/SHA256" "$data/labels.bin" "$data"/test-0[0-3].jxl "$part"
  bench/gpu/cifar.py "$part" "$world/cifar" > "$world/log" 2>&1; status=$?
  check 'mosaics that have not come are waited for' '[ $status -eq 3 ] && [ "$(ls "$world/cifar")" = "$(printf "test-0%d.images\n" 0 1 2 3)" ]'
  cp "$data"/test-*.jxl "$part"
  bench/gpu/cifar.py "$part" "$world/cifar" > "$world/log" 2>&1; status=$?
  check 'a whole file is made and checked' '[ $status -eq 3 ] && [ "$(md5sum < "$world/cifar/test.bin")" = "4499cfba6c016c1be1438163640a0898  -" ] && [ "$(ls "$world/cifar")" = test.bin ]'
  rm "$world/cifar/test.bin"; cp "$part/test-01.jxl" "$part/test-00.jxl"
  bench/gpu/cifar.py "$part" "$world/cifar" > "$world/log" 2>&1; status=$?
  check 'a wrong one is refused in a line' '[ $status -eq 1 ] && [ ! -e "$world/cifar/test.bin" ] && grep -q "^cifar.py: .*test.bin: its SHA-256" "$world/log" && [ "$(wc -l < "$world/log")" -eq 1 ]'
  head -c 5000 "$data/test-00.jxl" > "$part/test-00.jxl"; rm "$world/cifar"/*
  bench/gpu/cifar.py "$part" "$world/cifar" > "$world/log" 2>&1; status=$?
  check 'a cut mosaic is named' '[ $status -eq 1 ] && grep -q "^cifar.py: .*test-00.jxl: djxl: " "$world/log" && [ "$(wc -l < "$world/log")" -eq 1 ]'
else
  echo "SKIP: $data or djxl (libjxl-tools) is not here"
fi

# ---- on the emulated plugin ----------------------------------------------------------------------------------------------------
if [ -e "$CMKD_BUILD/simt/libcmkd-cuda.so" ]; then
  export CMKD_CUDA_PLUGIN=$CMKD_BUILD/simt/libcmkd-cuda.so CMKD_CUDA_SELFCHECK=0
  out=$world/emulated
  again=(bench/gpu/run-all --device cuda --tiny --cudnn off --out "$out" --seeds 1 --epochs 1 --python /none --only 1,2,4,5,7,9)
  in_slots "${again[@]}"
  unset CMKD_CUDA_PLUGIN CMKD_CUDA_SELFCHECK
  check 'emulated: short slots come to the end' '[ $status -eq 1 ] && ! grep -E "^[0-9]\. (failed|missing)" "$world/log" | grep -v "no Python with PyTorch"'
  echo "note: emulated: $slots slots, $killed killed"
  check 'emulated: every test of the program' '[ "$(value "$out/1-device-tests.json" "set(d[\"cases\"][\"own kernels\"][\"tests\"][\"test_device_kernels\"].values())")" = "{'"'ok'"'}" ]'
  check 'emulated: a step is taken apart' '[ "$(value "$out/2-steps.json" "[r[\"result\"][\"kernels_per_step\"] > 0 for c in d[\"cases\"].values() for n, r in c[\"runs\"].items() if n == \"profile, own\"]")" = "[True]" ]'
  check 'emulated: agreement' '[ "$(value "$out/5-agreement.json" "all(result(c, \"fp32, own\")[\"within\"] for c in d[\"cases\"])")" = True ]'
  check 'emulated: cache and students' '[ "$(value "$out/9-published.json" "sum(r[\"result\"][\"epochs\"] == 1 for c in d[\"cases\"].values() for r in c[\"runs\"].values())")" = 3 ]'
else
  echo 'SKIP: the emulated plugin is not built'
fi

# ---- programs that misbehave -----------------------------------------------------------------------------------------------------
# A build folder of shell scripts. Tests of `ops`: fine fails_first after crashes hangs last; after a failure all that follow fail too.
fake=$world/fake
mkdir -p "$fake/bench/gpu" "$fake/tests"
cat > "$fake/bench/gpu/step" << 'EOF'
#!/bin/sh
[ -z "$NO_DRIVER" ] || { echo 'step: --device cuda: no NVIDIA driver here; install one, or use --device cpu' >&2; exit 1; }
echo "{\"backend\": \"cuda: made up, bf16, own convolutions (no cuDNN)\", \"img_per_s\": 1, \"step_us\": 1, \"precision\": \"bf16\", \"bytes_per_image\": 1, \"flop_per_image\": 1, \"cudnn\": \"$CMKD_CUDNN\"}"
EOF
cat > "$fake/tests/test_device_ops" << 'EOF'
#!/bin/bash
broken=
echo '[==========] Running some test(s).'; echo 'note: on a made-up GPU'
for t in fine fails_first after crashes hangs last; do
  case ,$CMKD_TESTS_DONE, in *,$t,*) continue ;; esac
  echo "[ RUN      ] $t"
  [ -z "$broken" ] || { echo "[  FAILED  ] $t"; continue; }
  case $t in
    fails_first) [ -e "$0.mended" ] || { echo 'the numbers differ'; broken=1; echo "[  FAILED  ] $t"; continue; } ;;
    crashes) kill -SEGV $$ ;;
    hangs) sleep 1000 ;;
  esac
  echo "[       OK ] $t"
done
exit ${broken:-0}
EOF
sed 's/for t in .*/for t in fine; do/' "$fake/tests/test_device_ops" > "$fake/tests/test_device_kernels"
for name in norm conv loss backend runs failures seam; do cp "$fake/tests/test_device_kernels" "$fake/tests/test_device_$name"; done
mkdir "$fake/bin"
cat > "$fake/bin/compute-sanitizer" << 'EOF'
#!/bin/bash
tool=$2; shift 4
"$@"; status=$?
case "$tool $1" in
  memcheck*conv) printf '========= %s\n' 'Invalid __global__ write of size 4 bytes' '    at kernel in conv_own.cu:12' 'ERROR SUMMARY: 1 error' ;;
  racecheck*) echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)' ;;
  *) echo '========= ERROR SUMMARY: 0 errors' ;;
esac
exit $status
EOF
chmod +x "$fake"/*/* "$fake"/bench/gpu/*
made_up=(bench/gpu/run-all --build "$fake" --out "$world/made-up" --python /none --limit 2)
NO_DRIVER=1 "${made_up[@]}" --seconds 60 > "$world/log" 2>&1; status=$?
check 'without a driver: one line, nothing tried' '[ $status -eq 1 ] && [ "$(tail -n 1 "$world/log")" = "run-all: step: --device cuda: no NVIDIA driver here; install one, or use --device cpu" ] && [ ! -e "$world/made-up/1-device-tests.json" ]'
bench/gpu/run-all --build "$world/nothing" --out "$world/unbuilt" --seconds 30 > "$world/log" 2>&1; status=$?
bench/gpu/run-all --out "$world/short" --seconds 9 > "$world/short.log" 2>&1; short=$?
check 'a call without any time is a mistake' '[ $short -eq 2 ] && grep -q -- "--margin" "$world/short.log"'
check 'a folder without programs: one line' '[ $status -eq 1 ] && [ "$(tail -n 1 "$world/log")" = "run-all: $world/nothing/bench/gpu/step is not built (make gpu-kit)" ]'
touch "$world/libcudnn.so.9"
"${made_up[@]}" --cudnn "$world/libcudnn.so.9" --only 1,2 --seconds 60 > "$world/log" 2>&1; status=$?
check 'tests go on past a failure, a crash and a hang' '[ "$(value "$world/made-up/1-device-tests.json" "list(d[\"cases\"][\"own kernels\"][\"tests\"][\"test_device_ops\"].values())")" = "['"'ok', 'failed', 'ok', 'crashed', 'over 2 s', 'ok'"']" ]'
check 'and say what failed' '[ $status -eq 1 ] && grep -q "fails_first (failed), crashes (crashed), hangs (over 2 s)" "$world/log" && grep -q "the numbers differ" "$world/made-up/1-device-tests.md"'
check 'the other programs are done' '[ "$(value "$world/made-up/1-device-tests.json" "result(\"backend, cuDNN\", \"test_device_backend\")")" = "{'"'ok'"': 1}" ]'
check 'without cuDNN nothing is timed in its name' 'grep -q "kd, cudnn: failed: step: meant for cuDNN, ran on cuda: made up, bf16, own" "$world/log" && [ "$(value "$world/made-up/2-steps.json" "result(next(iter(d[\"cases\"])), \"kd, own\")[\"cudnn\"]")" = off ]'
touch "$fake/tests/test_device_ops.mended"
"${made_up[@]}" --cudnn "$world/libcudnn.so.9" --only 1 --seconds 60 > "$world/log" 2>&1
check 'a second call tries what was bad once more' '[ "$(value "$world/made-up/1-device-tests.json" "sorted(d[\"cases\"][\"own kernels\"][\"tests\"][\"test_device_ops\"].items())")" = "[('"'after', 'ok'), ('crashes', 'crashed'), ('fails_first', 'ok'), ('fine', 'ok'), ('hangs', 'over 2 s'), ('last', 'ok'"')]" ]'
PATH=$fake/bin:$PATH "${made_up[@]}" --cudnn "$world/libcudnn.so.9" --only 4 --seconds 60 > "$world/log" 2>&1
check 'what compute-sanitizer says' 'grep -q "4. memcheck: test_device_conv: failed: 1 errors; no test failed; Invalid __global__ write of size 4 bytes" "$world/log" && grep -q "at kernel in conv_own.cu:12" "$world/made-up/4-sanitizers.md"'
check 'and where it has nothing to say' '[ "$(value "$world/made-up/4-sanitizers.json" "result(\"racecheck\", \"test_device_loss\")")" = "{'"'errors': 0, 'tests': 1"'}" ] && grep -q "crashes (crashed), hangs (over 2 s)" "$world/log"'
rm -r "$world/made-up" "$world/made-up.work"
PATH=/usr/bin:/bin "${made_up[@]}" --cudnn "" --python "$(command -v python3)" --only 2 --seconds 60 > "$world/log" 2>&1
# where the system has cuDNN, or the Python one of pip's, that is found; else it is missing by name
check 'cuDNN is found or missed by name' 'grep -qE "missing: cuDNN 9 is not here.*kd, cudnn|kd, cudnn: failed: step: meant for cuDNN" "$world/log"'

# pip puts cuDNN into a namespace package that no loader looks into
mkdir -p "$world/site/nvidia/cudnn/lib" "$world/site/nvidia/cu13/lib"; touch "$world/site/nvidia/cudnn/lib/libcudnn.so.9"
found=$(PYTHONPATH=$world/site python3 -c "
import argparse, sys; sys.path.insert(0, 'bench/gpu'); sys.dont_write_bytecode = True
from pathlib import Path; from machine import Machine
m = Machine(argparse.Namespace(device='cpu', root='.', cudnn=None, python=sys.executable, hbm=None, tflops=None), Path('.'))
print(m.cudnn(), *m.beside_cudnn())" 2> "$world/log")
check 'cuDNN of pip' '[ "$found" = "$world/site/nvidia/cudnn/lib/libcudnn.so.9 $world/site/nvidia/cu13/lib $world/site/nvidia/cudnn/lib" ]'

echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
