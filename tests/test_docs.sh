#!/usr/bin/env bash
# Every file and folder that CONTRIBUTING.md and README.md name is there, so that their lists stay true.
set -u
cd "$(dirname "$0")/.."
passed=0 failed=0
check() { # DOCUMENT PATH (may hold * and the placeholders NAME, FAMILY)
  local pattern=${2//NAME/*}
  pattern=${pattern//FAMILY/*}
  if compgen -G "$pattern" > /dev/null; then passed=$((passed + 1)); return; fi
  failed=$((failed + 1)); echo "$1: there is no $2"
}
folders='base|bench|docs|formats|include|kernels|nets|precompute|recipes|tests|train'
for document in CONTRIBUTING.md README.md; do
  while read -r path; do check $document "$path"; done < <(
    grep -oE "(^|[^/A-Za-z0-9_.-])($folders)/[A-Za-z0-9_*./-]*" "$document" | sed -E 's/^[^a-z]//; s/[.]$//' | sort -u)
done
echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
