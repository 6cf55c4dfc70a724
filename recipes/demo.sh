#!/bin/sh
# The demo: on Fashion-MNIST a small teacher is trained and paid for once (its cache), then the same small student
# learns three times with the same short budget: from labels alone, with KD, with CMKD. Run it again and it goes on
# where it stopped.
#   recipes/demo.sh [FOLDER]      programs from $CMKD_BUILD (build), files into FOLDER ($CMKD_BUILD/demo)
set -eu
export LC_ALL=C
cd "$(dirname "$0")/.."
build=${CMKD_BUILD:-build} demo=${1:-${CMKD_BUILD:-build}/demo}
data=${CMKD_DEMO_DATA:-fashion-mnist}
teacher=resnet14 teacher_epochs=1 student=resnet8 samples=${CMKD_DEMO_SAMPLES:-8000} views=4 student_epochs=4
train=$build/cmkd-train cache=$build/cmkd-cache
mkdir -p "$demo"

heading() { printf '\n== %s\n' "$*"; }
stop() {
  echo
  echo "The demo stopped here. It goes on from this point with: make demo"
  exit 1
}
trap 'echo; echo "Interrupted; make demo goes on from here."; exit 130' INT
# number NAME < object: the value of the first "NAME":number
number() { tr ',{}' '\n\n\n' | sed -n "s/^\"$1\":\(-\{0,1\}[0-9.][0-9.e+-]*\)\$/\1/p" | head -n 1; }
part() { sed -n "s/.*\"$1\":{\([^}]*\)}.*/\1/p" "$2"; } # the inside of a flat object
calc() { awk "BEGIN { printf \"$1\", $2 }"; }
# step FILE COMMAND...: the command's JSON into FILE, unless an earlier run left it
step() {
  file=$1; shift
  [ -s "$file" ] && { echo "   done before: $file"; return; }
  echo "   $*"
  "$@" > "$file.tmp" || { rm -f "$file.tmp"; stop; }
  mv "$file.tmp" "$file"
}
run() { # NAME, options...: one training
  name=$1; shift
  step "$demo/$name.json" "$train" "$@" --out "$demo/$name" --resume --json
}

heading "1. A teacher: $teacher on all of $data, $teacher_epochs epoch"
run teacher --data "$data" --arch $teacher --loss ce --epochs $teacher_epochs --schedule cosine --lr 0.1
heading "2. Paid for once: its logits for $samples images, $views augmented views each"
step "$demo/cache.json" "$cache" build --teacher "$demo/teacher/last.safetensors" --data "$data" \
  --samples $samples --views $views --seed 1 --with-test --out "$demo/teacher.h5" --json
"$cache" info "$demo/teacher.h5"
for loss in ce kd cmkd; do
  case $loss in
    ce)   heading "3. A student ($student, $samples images, $student_epochs epochs) from labels alone" ;;
    kd)   heading '4. The same student with KD, from the cache' ;;
    cmkd) heading '5. The same student with CMKD, from the cache' ;;
  esac
  run student-$loss --cache "$demo/teacher.h5" --data "$data" --student $student --loss $loss \
    --epochs $student_epochs --schedule cosine --lr 0.1
done

teacher_top1=$(part last "$demo/teacher.json" | number top1)
rate=$(number teacher_images_per_s < "$demo/cache.json")
built=$(number seconds < "$demo/cache.json")
size=$("$cache" info --json "$demo/teacher.h5" | number bytes)
live=$(calc %.1f "$samples * $student_epochs / $rate")
heading "$student on $data: $samples images, $student_epochs epochs, the same seed and budget;" \
  "teacher $teacher at $(calc %.2f "$teacher_top1")%"
printf '%-14s  %10s  %10s  %8s  %s\n' '' 'last top-1' 'best top-1' seconds 'with the teacher live'
for loss in ce kd cmkd; do
  case $loss in ce) label='labels alone' ;; kd) label=KD ;; cmkd) label=CMKD ;; esac
  seconds=$(number seconds < "$demo/student-$loss.json")
  [ $loss = ce ] && cost=- || cost=$(calc '%.1f s' "$seconds + $live")
  last=$(part last "$demo/student-$loss.json" | number top1)
  best=$(part best "$demo/student-$loss.json" | number top1)
  printf '%-14s  %10.2f  %10.2f  %8.1f  %s\n' "$label" "$last" "$best" "$seconds" "$cost"
done
echo
printf '%s' "The teacher ran once, at $(calc %.0f "$rate") images/s: $(calc %.1f "$built") s for a cache of "
echo "$(calc %.2f "$size / 1e6") MB. Live it would have run for $live s more in every"
echo "distilled run, at that measured speed. A full experiment is 240 epochs and many runs; the cache stays the same."
echo 'One seed: differences of a few tenths of a point are noise.'
echo "Files: $demo/teacher/last.safetensors, $demo/teacher.h5, $demo/student-{ce,kd,cmkd}/ (weights, log.jsonl)"
