#!/usr/bin/env bash
# The public interface: libcmkd.so exports exactly the functions that include/cmkd/*.h declares, each of them marked CMKD_API, and the
# CUDA plugin those of loss_cuda.h; every header compiles alone, as C and as C++.
set -u
cd "$(dirname "$0")/.."
build=${CMKD_BUILD:-$PWD/build} passed=0 failed=0 skipped=''
check() { # NAME, COMMAND...
  local name=$1 output; shift
  if output=$("$@" 2>&1); then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$name: FAILED"; echo "$output" | tail -n 20; fi
}
cc=${CC:-cc} cxx=${CXX:-c++}
out=$(mktemp -d "${TMPDIR:-/tmp}/cmkd-api-XXXXXX"); trap 'rm -rf "$out"' EXIT

# The function declarations of headers, without those they include: the statements outside braces that have parameters and are no
# typedef. CMKD_API is left as it stands in the text.
declarations() { # HEADER...
  sed '/^#include/d; /^#define CMKD_API /d' "$@" | $cc -std=c17 -E -P -x c - | awk '
    { text = text " " $0 }
    END {
      for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (c == "{") depth++
        else if (c == "}") depth--
        else if (depth == 0 && c != ";") statement = statement c
        if (c == ";" && depth == 0) {
          if (statement !~ /typedef/ && match(statement, /cmkd_[a-z0-9_]+ *\(/)) print statement
          statement = ""
        }
      }
    }'
}
names() { sed -nE 's/^[^(]*(cmkd_[a-z0-9_]+) *\(.*/\1/p' | sort; }
exported() { nm -D --defined-only "$1" | awk '{ print $NF }' | sed 's/@.*//' | grep -vE '^(__|_init$|_fini$)' | sort; }

headers=$(ls include/cmkd/*.h | grep -v /loss_cuda.h)
# shellcheck disable=SC2086
declarations $headers > "$out/declarations"
check 'every declaration is marked CMKD_API' bash -c "! grep -v '^ *CMKD_API ' '$out/declarations'"
names < "$out/declarations" > "$out/declared"
check 'declarations were found' grep -qx cmkd_fail "$out/declared"
exported "$build/libcmkd.so" > "$out/exported"
check 'libcmkd.so exports what is declared' diff "$out/declared" "$out/exported"

# sanitizers bring calls of their own
if ! nm -D "$build/libcmkd.so" | grep -q __asan_init; then
  nm -D --undefined-only "$build/libcmkd.so" | awk '{ print $NF }' | sed 's/@.*//' > "$out/used"
  check 'libcmkd.so prints nothing, ends nothing, takes no signal, reads no environment' bash -c "! grep -xE \\
    'getenv|secure_getenv|setenv|putenv|puts|putchar|printf|__printf_chk|vprintf|stdout|stderr|exit|_exit|abort|signal|sigaction' '$out/used'"
fi

for plugin in "$build/libcmkd-cuda.so" "$build/simt/libcmkd-cuda.so"; do
  [ -e "$plugin" ] || continue
  exported "$plugin" > "$out/plugin"
  declarations include/cmkd/loss_cuda.h | names > "$out/cuda"
  check "$plugin exports loss_cuda.h" bash -c "test -s '$out/cuda' && ! comm -23 '$out/cuda' '$out/plugin' | grep ."
done

for header in include/cmkd/*.h; do
  name=cmkd/$(basename "$header")
  check "$name alone" bash -c "echo '#include <$name>' | $cc -std=c17 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only -x c -"
  echo "#include <$name>" >> "$out/all.cpp"
done
if command -v "${cxx##* }" > /dev/null; then
  check 'all headers as C++' bash -c "$cxx -std=c++11 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only '$out/all.cpp'"
else
  echo 'SKIP: no C++ compiler'; skipped=cplusplus
fi
echo "[  PASSED  ] $passed test(s)."
[ -z "$skipped" ] || printf '[  SKIPPED ] 1 test(s), listed below:\n[  SKIPPED ] %s\n' $skipped
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
