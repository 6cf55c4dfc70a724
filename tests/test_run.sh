#!/usr/bin/env bash
# tests/run on made-up programs: the summaries of every cmocka since 1.1.5, skips, crashes, a hang, and slowness that is
# none. A copy of it runs in a folder of its own, where there are no other tests.
set -u
cd "$(dirname "$0")/.."
passed=0 failed=0
world=$(mktemp -d "${TMPDIR:-/tmp}/cmkd-run-XXXXXX"); child=
trap '[ -z "$child" ] || kill "$child" 2> /dev/null; rm -rf "$world"' EXIT
mkdir "$world/tests"; cp tests/run "$world/tests/run"
made() { printf '#!%s\n%s\n' "$(command -v bash)" "$2" > "$world/$1"; chmod +x "$world/$1"; } # NAME, TEXT
run() { # NAME...: status and $world/out
  (cd "$world" && exec tests/run "$@") > "$world/out" 2>&1 < /dev/null; status=$?
}
check() { # NAME, CONDITION
  if eval "$2"; then passed=$((passed + 1)); return; fi
  failed=$((failed + 1)); echo "$1: FAILED: $2 (status $status)"; tail -n 30 "$world/out"
}
says() { grep -qF -- "$1" "$world/out"; }
ends() { [ "$(tail -n 1 "$world/out")" = "$1" ]; }

# ---- summaries: what cmocka prints of three tests, one passed, one skipped, one failed
made old 'cat << "X"
[==========] Running 3 test(s).
[ RUN      ] good
[       OK ] good
[ RUN      ] left
[  SKIPPED ] left
[ RUN      ] bad
[  ERROR   ] --- no
[  FAILED  ] bad
[==========] 3 test(s) run.
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] left

 1 SKIPPED TEST(S)
[  FAILED  ] 1 test(s), listed below:
[  FAILED  ] bad

 1 FAILED TEST(S)
X
exit 1'
sed -E 's/^\[==========\] /&my tests: /; s/^(\[  (SKIPPED|FAILED ) \]) ([0-9]+ test)/\1 my tests: \3/' "$world/old" > "$world/new"
chmod +x "$world/new"
for format in old new; do # cmocka 1.1.5; 1.1.6 and later, with the name of the group
  run ./$format
  check "$format: counted" '[ $status -eq 1 ] && ends "1 passed, 1 failed, 1 skipped"'
  check "$format: names" 'says "skipped: $format/left" && says "failed: $format" && says "exit status 1"'
  grep -vE 'good|bad|FAILED|ERROR' "$world/$format" | sed 's/PASSED  \] 1/PASSED  ] 0/; s/3 test/1 test/; s/exit 1/exit 0/' > "$world/$format-skips"
  chmod +x "$world/$format-skips"
  made good 'echo "[  PASSED  ] 2 test(s)."'
  run ./$format-skips ./good
  check "$format: all skipped is no failure" '[ $status -eq 0 ] && ends "2 passed, 0 failed, 1 skipped"'
  run ./$format-skips
  check "$format: nothing but skips is no success" '[ $status -eq 1 ] && ends "0 passed, 0 failed, 1 skipped"'
done
made groups 'echo "[  PASSED  ] 2 test(s)."; echo "[  SKIPPED ] a: 1 test(s), listed below:"; echo "[  PASSED  ] 3 test(s)."'
run ./groups
check 'several groups are added' '[ $status -eq 0 ] && ends "5 passed, 0 failed, 1 skipped"'

# ---- programs that do not come to a summary
made silent 'exit 0'
made crash 'echo "[  PASSED  ] 4 test(s)."; kill -SEGV $$'
made status 'echo "[  PASSED  ] 4 test(s)."; exit 3'
run ./good ./silent; check 'no summary is a failure' '[ $status -eq 1 ] && ends "2 passed, 1 failed, 0 skipped" && says "failed: silent"'
run ./good ./crash; check 'a crash is a failure' '[ $status -eq 1 ] && ends "6 passed, 1 failed, 0 skipped" && says "exit status 139"'
run ./good ./status; check 'an exit status is a failure' '[ $status -eq 1 ] && ends "6 passed, 1 failed, 0 skipped"'
run ./none-such; check 'no program at all is no success' '[ $status -eq 1 ] && ends "0 passed, 0 failed, 0 skipped"'

# ---- hanging and being slow: the first waits for ever, with a child that does; the others take longer than the limit
made hang 'echo "[ RUN      ] stuck"; sleep 100000 & echo $! > child; wait'
made slow 'end=$((SECONDS + 7)); while [ $SECONDS -lt $end ]; do :; done; echo "[  PASSED  ] 1 test(s)."'
made below 'bash -c "end=\$((SECONDS + 7)); while [ \$SECONDS -lt \$end ]; do :; done"; echo "[  PASSED  ] 1 test(s)."'
made talks 'for i in 1 2 3 4; do sleep 2; echo line; done; echo "[  PASSED  ] 1 test(s)."'
export CMKD_TEST_IDLE=4
# a killed process is there until whoever inherits it has taken notice
gone() { local i; for ((i = 0; i < 600; i++)); do kill -0 "$1" 2> /dev/null || return 0; sleep 0.1; done; return 1; }
run ./hang
check 'a hang is ended and named' '[ $status -eq 1 ] && ends "0 passed, 1 failed, 0 skipped" && says "hung: no CPU time and no output for 4 s" && says stuck'
check 'with all its processes' '[ -s "$world/child" ] && gone "$(cat "$world/child")"'
run ./slow ./below ./talks
check 'who computes or prints does not hang' '[ $status -eq 0 ] && ends "3 passed, 0 failed, 0 skipped"'
made spin 'while :; do :; done'
CMKD_TEST_SILENT=3 run ./spin
check 'endless computing without a word ends' '[ $status -eq 1 ] && says "hung: no output for 3 s"'

# ---- stopped from outside, it takes the program along
rm "$world/child"
(cd "$world" && exec tests/run ./hang) > "$world/out" 2>&1 < /dev/null & child=$!
while ! [ -s "$world/child" ]; do kill -0 $child || break; sleep 0.05; done
kill -TERM $child; wait $child; status=$? child=
check 'a terminated run ends what it started' '[ $status -eq 143 ] && [ -s "$world/child" ] && gone "$(cat "$world/child")"'

echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
