#!/usr/bin/env bash
# The losses on one core beside the whole CMKD loss in PyTorch (torch_cmkd.py with torchsort), measured in turns in the same run, three
# rounds, medians of rounds. Both sides in processor time of their one thread, so that other work on the machine counts little. make bench-loss; $PYTHON chooses the Python, $CMKD_SHARED the folder that holds peers/torch_cmkd.py.
set -u
cd "$(dirname "$0")/.."
build=${CMKD_BUILD:-$PWD/build} python=${PYTHON:-python3} peer=${CMKD_SHARED:-../shared}/peers/torch_cmkd.py rounds=${ROUNDS:-3}
value() { sed -nE "s/.*\"$1\": ?\"?([^,\"}]*).*/\1/p"; }
middle() { sort -g | awk '{ x[NR] = $1 } END { if (NR) print x[int((NR + 1) / 2)] }'; }
clock='import runpy, sys, time; time.perf_counter = time.process_time; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
have=1
if [ ! -f "$peer" ]; then have=0; echo "peer: $peer is not here; our figures alone"
elif ! why=$("$python" -c 'import torch, torchsort' 2>&1); then have=0; echo "peer: $python has no torch with torchsort (${why##*$'\n'}); our figures alone. PYTHON=... chooses another"; fi
printf '%-8s %6s %6s | %-9s %10s %12s | %12s %8s | %14s %8s\n' loss batch classes set 'us a row' '(best)' 'PyTorch' ratio 'bytes limit us' times
for shape in '64 100' '512 1000'; do
  set -- $shape
  ours=() theirs=() best=()
  for ((i = 0; i < rounds; i++)); do
    line=$("$build/bench/loss" "$1" "$2" cmkd) || exit 1
    ours+=("$(value us_per_row <<< "$line")"); best+=("$(value best_us_per_row <<< "$line")")
    if [ $have = 1 ]; then theirs+=("$("$python" -c "$clock" "$peer" --batch "$1" --classes "$2" --threads 1 --steps 30 | value us_per_row)"); fi
  done
  mine=$(printf '%s\n' "${ours[@]}" | middle) fast=$(printf '%s\n' "${best[@]}" | sort -g | head -n 1)
  if [ $have = 1 ]; then other=$(printf '%s\n' "${theirs[@]}" | middle); ratio=$(awk "BEGIN { printf \"%.1fx\", $other / $mine }"); else other=-; ratio=-; fi
  limit=$(value bytes_limit_us <<< "$line")
  printf '%-8s %6s %6s | %-9s %10s %12s | %12s %8s | %14s %8s\n' cmkd "$1" "$2" "$(value isa <<< "$line")" "$mine" "($fast)" "$other" "$ratio" "$limit" "$(awk "BEGIN { printf \"%.0f\", $mine / $limit }")"
done
for loss in ce kd dkd nkd dist dkd+cmkd; do
  for shape in '64 100' '512 1000'; do
    set -- $shape
    line=$("$build/bench/loss" "$1" "$2" "$loss") || exit 1
    printf '%-8s %6s %6s | %-9s %10s %12s |\n' "$loss" "$1" "$2" "$(value isa <<< "$line")" "$(value us_per_row <<< "$line")" "($(value best_us_per_row <<< "$line"))"
  done
done
echo "bytes limit: student and teacher read, gradient written, 12 bytes a class, at the bandwidth of adding two arrays of the batch's size."
