#!/usr/bin/env bash
# Every header of kernels/cpu and kernels/ref is complete by itself and may be included twice: it compiles as the first
# line of a file, the vector code for every instruction set. Left out: the headers that define a table, which are
# included once a file on purpose and which every build compiles.
set -u
cd "$(dirname "$0")/.."
passed=0 failed=0
read -ra cc <<< "${CC:-gcc}"
command -v "${cc[0]}" > /dev/null || {
  echo "SKIP: no ${cc[0]}"; echo '[  SKIPPED ] 1 test(s), listed below:'; echo '[  SKIPPED ] cpu_headers'; exit 0; }
flags=(-x c -std=c17 -fsyntax-only -O1 -Wall -Wextra -Werror -Wno-unused-function -I. -Iinclude -D_GNU_SOURCE)
check() { # HEADER, FLAG...
  local header=$1 output; shift
  if output=$(printf '#include "%s"\n#include "%s"\nint one;\n' "$header" "$header" | "${cc[@]}" "${flags[@]}" "$@" - 2>&1); then
    passed=$((passed + 1))
  else
    failed=$((failed + 1)); echo "$header $*: FAILED"; echo "$output" | head -n 10
  fi
}
while read -r header; do
  case $header in
    kernels/cpu/kernels_impl.h | kernels/cpu/loss/rows_impl.h) continue ;;
    kernels/cpu/conv/dnnl_shim.h) echo '#include <dnnl.h>' | "${cc[@]}" -x c -E - > /dev/null 2>&1 || continue ;;
  esac
  check "$header"
  grep -q 'vector\.h"\|activation\.h"\|loss/exp\.h"\|_VECTOR_H' "$header" || continue
  [ "$(uname -m)" = x86_64 ] || continue
  check "$header" -mavx2 -mfma -mf16c
  check "$header" -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
  check "$header" -DVF=16 -Wno-psabi # any width, out of the compiler's own instructions
done < <(find kernels/cpu kernels/ref -name '*.h' | sort)
echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
