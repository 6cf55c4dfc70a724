#!/usr/bin/env bash
# Every file, folder and function that these documents name is there, so that what they say of the code stays true;
# and no file includes what the last table of docs/architecture.md does not allow.
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
found() { # DOCUMENT WHAT COMMAND...: passes when the command does
  local document=$1 what=$2; shift 2
  if "$@" > /dev/null; then passed=$((passed + 1)); return; fi
  failed=$((failed + 1)); echo "$document: there is no $what"
}
files=$(find ${folders//|/ } -type f | sed 's,^,/,')
code=$(grep -rhowE --include='*.[ch]' 'cmkd_[a-z0-9_]+|CMKD_[A-Z0-9_]+' ${folders//|/ } Makefile | sort -u)
for document in CONTRIBUTING.md README.md docs/*.md; do
  while read -r path; do check $document "$path"; done < <(
    grep -oE "(^|[^/A-Za-z0-9_.-])($folders)/[A-Za-z0-9_*./-]*" "$document" | sed -E 's/^[^a-z]//; s/[.]$//' | sort -u)
done
for document in CONTRIBUTING.md docs/*.md; do
  while read -r file; do found $document "$file" grep -e "/$file\$" <<< "$files"; done < <(
    grep -oE '(^|[^A-Za-z0-9_./*-])[a-z][a-z0-9_/]*\.(c|cu|h)\b' "$document" | sed -E 's/^[^a-z]//' | sort -u)
  while read -r word; do found $document "$word" grep -xF "$word" <<< "$code"; done < <(
    grep -owE 'cmkd_[a-z0-9_]+|CMKD_[A-Z0-9_]+' "$document" | sort -u)
done
# FOLDER, what its files may include (a regular expression), FILES
includes() {
  local bad
  bad=$(grep -HoE '^#include "[^"/]+/[^"]*"' $3 | sed -E 's/^([^:]*):#include "/\1 /; s/"$//' | grep -vE " ($2)")
  if [ -z "$bad" ]; then passed=$((passed + 1)); return; fi
  failed=$((failed + 1)); echo "$1 includes what it may not:"; echo "$bad"
}
sources() { find "$@" -name '*.[ch]' -o -name '*.cu'; } # FOLDER...
below='base/[a-z0-9_]+\.h|cmkd/' # base/program is for programs
includes include/cmkd 'cmkd/' "$(sources include)"
includes base "$below" "$(ls base/*.[ch])"
includes base/program 'base/|cmkd/|kernels/backend\.h' "$(sources base/program)"
includes formats "formats/|$below" "$(sources formats)"
includes kernels "kernels/|tests/simt/|$below" "$(sources kernels)"
includes nets "nets/|kernels/|$below" "$(sources nets)"
# what the Makefile's PROGRAM_SRC names is no part of the library
program="/(main|command_[a-z]+$(sed -n '/^PROGRAM_SRC/,/[^\\]$/p' Makefile | grep -oE '[a-z_]+\.c' | sed 's/\.c$//; s/^/|/' | tr -d '\n'))\\.[ch]$"
includes precompute 'precompute/|nets/|formats/|base/|cmkd/' "$(sources precompute)"
includes 'the library in precompute' "nets/|formats/|$below" "$(sources precompute | grep -vE "$program")"
includes train 'train/|nets/|kernels/|formats/cache/paths\.h|base/|cmkd/' "$(sources train)"
includes 'the library in train' "train/|nets/|kernels/|formats/cache/paths\.h|$below" "$(sources train | grep -vE "$program")"
echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
