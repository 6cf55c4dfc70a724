#!/usr/bin/env bash
# What `make install` puts in place, used by somebody else's program through pkg-config; then `make uninstall`.
set -u
cd "$(dirname "$0")/.."
build=${CMKD_BUILD:-$PWD/build} passed=0 failed=0
finish() {
  echo "[  PASSED  ] $passed test(s)."
  [ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
  exit $((failed != 0))
}
skip() { echo "SKIP: $1"; echo '[  SKIPPED ] 1 test(s), listed below:'; echo '[  SKIPPED ] install'; exit 0; }
check() { # NAME, COMMAND...
  local name=$1 output; shift
  if output=$("$@" 2>&1); then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$name: FAILED: $*"; echo "$output" | tail -n 20; fi
}
for tool in make nm readelf; do command -v $tool > /dev/null || skip "no $tool"; done
if nm -D "$build/libcmkd.so" | grep -q __asan_init; then skip 'a sanitized library is not for installing'; fi
command -v pkg-config > /dev/null || skip 'no pkg-config'
stage=$(mktemp -d "${TMPDIR:-/tmp}/cmkd-install-XXXXXX"); trap 'rm -rf "$stage"' EXIT
flags=$(sed -E 's/--jobserver[^ ]*//g; s/(^| )-j[0-9]*//g' <<< "${MAKEFLAGS:-}")
prefix=$(sed -n 's/^prefix=//p' "$build/cmkd.pc") # as built: another one would rebuild
run_make() { env -u MFLAGS MAKEFLAGS="$flags" make -s BUILD="$build" PREFIX="$prefix" DESTDIR="$stage" "$@"; }
root=$stage$prefix

check install run_make install
export PKG_CONFIG_PATH=$root/lib/pkgconfig
cc=${CC:-cc}
example=$root/share/cmkd/examples/loss.c
pc="pkg-config --define-variable=prefix='$root'"
check 'an example with the shared library' bash -c "$cc -std=c17 -Wall -Werror -o '$stage/shared' '$example' \$($pc --cflags --libs cmkd) && LD_LIBRARY_PATH='$root/lib' '$stage/shared' | grep -q '^loss 2.180918'"
check 'the program asks for the soname' bash -c "readelf -d '$stage/shared' | grep -q 'NEEDED.*libcmkd.so.0'"
check 'an example with the static library' bash -c "$cc -std=c17 -o '$stage/static' '$example' \$($pc --static --cflags --libs cmkd | sed 's/-lcmkd/-l:libcmkd.a/') && '$stage/static' | grep -q '^loss 2.180918' && ! readelf -d '$stage/static' | grep -q libcmkd"
check 'the header, the library and pkg-config name one version' bash -c "
  printf '#include <cmkd/api.h>\n#include <stdio.h>\nint main(void) { return puts(cmkd_version()) < 0; }\n' > '$stage/version.c' &&
  $cc -o '$stage/version' '$stage/version.c' \$($pc --cflags --libs cmkd) &&
  v=\$(LD_LIBRARY_PATH='$root/lib' '$stage/version') && [ \"\$v\" = \"\$($pc --modversion cmkd)\" ] &&
  [ -e '$root/lib/libcmkd.so.'\$v ] && '$root/bin/cmkd-train' --version | grep -qx \"cmkd-train \$v\""
for header in "$root"/include/cmkd/*.h; do
  check "$(basename "$header") is as in the sources" cmp "$header" "include/cmkd/$(basename "$header")"
done
for program in cmkd-cache cmkd-train; do
  check "$program starts" "$root/bin/$program" --help
  check "$program needs no CUDA" bash -c "! readelf -d '$root/bin/$program' | grep -qiE 'NEEDED.*(cuda|cudnn|cublas)'"
done
check 'HDF5 plugin' test -f "$root/lib/cmkd/libh5zstd.so"
check uninstall run_make uninstall
check 'nothing left behind' bash -c "[ -z \"\$(find '$root' -type f -o -type l)\" ]"
finish
