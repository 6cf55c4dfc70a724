#!/usr/bin/env bash
# CPU throughput against PyTorch in the same run: training at batch 64 and inference at batch 128, both sides alternately, medians over the
# rounds; beside it what the convolutions alone would allow, and the rate of useful multiply-adds against peak (padding is not multiplied, so
# convolutions on small images may pass it).
#   bench/train.sh [--rounds 3] [--threads 2] [--archs "resnet20 resnet8x4 wrn-16-2 ..."] [--eval "resnet56"] [--steps 12] [--cpu-time]
# --cpu-time: one thread each, and its own seconds instead of the clock's, for machines that are busy with other work.
# Needs $CMKD_BUILD/bench/train (make bench-train). The peer: bench/torch_train.py with a python3 that has torch; without it only our side is
# printed. The last line is one JSON object.
set -eu
cd "$(dirname "$0")/.."
rounds=3 threads=2 archs='resnet20 resnet8x4 wrn-16-2 vgg8 mobilenetv2_cifar shufflenetv2_cifar' evals='resnet56' steps=12 own=
while [ $# -gt 0 ]; do
  [ "$1" != --cpu-time ] || { own=--cpu-time threads=1; shift; continue; }
  case $1 in
    --rounds) rounds=$2 ;; --threads) threads=$2 ;; --archs) archs=$2 ;; --eval) evals=$2 ;; --steps) steps=$2 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift 2
done
program=${CMKD_BUILD:-build}/bench/train
peer=bench/torch_train.py
[ -x "$program" ] || { echo "bench/train.sh: $program is not built; run: make bench-train" >&2; exit 1; }
python=
for candidate in python3 /usr/bin/python3; do
  [ -z "$python" ] && "$candidate" -c 'import torch' 2> /dev/null && python=$candidate
done
[ -n "$python" ] || echo "SKIP: no python3 has torch (apt-get install python3-torch); ours alone"

number() { sed -nE "s/.*\"$1\": ([0-9.]+).*/\1/p"; }
median() { tr ' ' '\n' <<< "$1" | sed '/^$/d' | sort -g | awk '{ v[NR] = $1 } END { print NR ? (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) : 0 }'; }
divide() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "0" }'; }

peak=$("$program" --mode peak --threads "$threads" --steps 20 $own | number gflops)
echo "peak of the convolution tile on $threads threads: $peak GFLOP/s"
json="{\"threads\": $threads, \"rounds\": $rounds, \"peak_gflops\": $peak, \"runs\": ["
printf '%-7s %-20s %10s %10s %7s %16s %10s %8s\n' mode network 'ours img/s' PyTorch ratio 'of convs alone' GFLOP/s 'of peak'

# one MODE ARCH
one() {
  local mode=$1 arch=$2 ours= theirs= ceilings= flops= line batch=64 flags=
  [ "$mode" = eval ] && { batch=128; flags=--eval; }
  for _ in $(seq "$rounds"); do
    line=$("$program" --arch "$arch" --mode "$mode" --threads "$threads" --batch $batch --steps "$steps" $own)
    ours+=" $(number img_per_s <<< "$line")" flops+=" $(number gflops <<< "$line")"
    [ -z "$python" ] || theirs+=" $("$python" "$peer" --layout nhwc --threads "$threads" --arch "$arch" --batch $batch --steps "$steps" --warmup 2 $flags $own | number img_per_s)"
    [ "$mode" = eval ] || ceilings+=" $("$program" --arch "$arch" --mode convs --threads "$threads" --steps 4 $own | number img_per_s)"
  done
  local o t c f ratio fraction
  o=$(median "$ours") t=$(median "$theirs") c=$(median "$ceilings") f=$(median "$flops")
  ratio=$(divide "$o" "$t") fraction=$(divide "$o" "$c")
  printf '%-7s %-20s %10.1f %10.1f %7s %16s %10.1f %8s\n' "$mode" "$arch" "$o" "$t" "$ratio" "$fraction" "$f" "$(divide "$f" "$peak")"
  json+="{\"mode\": \"$mode\", \"arch\": \"$arch\", \"img_per_s\": $o, \"peer_img_per_s\": $t, \"ratio\": $ratio, \"convs_img_per_s\": $c, \"of_convs\": $fraction, \"gflops\": $f}, "
}
for arch in $archs; do one train "$arch"; done
for arch in $evals; do one eval "$arch"; done
echo "${json%, }]}"
