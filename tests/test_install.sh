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
cat > "$stage/user.c" <<'C'
#include <cmkd/cache.h>
#include <cmkd/dataset.h>
#include <cmkd/loss.h>
#include <cmkd/status.h>
#include <cmkd/views.h>
#include <cmkd/weights.h>
#include <stdio.h>
#include <string.h>
/* a loss evaluated, a view drawn, an error made: the three kinds of call a user makes */
int main(void) {
  cmkd_error err;
  cmkd_loss *loss;
  cmkd_cache *cache;
  const float student[6] = {1, 2, 3, 3, 2, 1}, teacher[6] = {0, 1, 5, 4, 1, 0};
  const int32_t labels[2] = {2, 0};
  cmkd_loss_result result;
  static _Alignas(64) char scratch[1 << 20];
  cmkd_loss_batch batch = {.batch = 2, .classes = 3, .student = student, .teacher = teacher, .teacher_dtype = CMKD_F32, .labels = labels, .epoch = 1};
  if (cmkd_loss_parse("kd", CMKD_LOSS_CIFAR, &loss, &err) != CMKD_OK) { puts(err.message); return 1; }
  if (cmkd_loss_scratch(loss, "ref", 2, 3) > sizeof scratch) return 1;
  if (cmkd_loss_eval(loss, "ref", &batch, scratch, &result, &err) != CMKD_OK) { puts(err.message); return 1; }
  cmkd_loss_free(loss);
  if (!(result.loss > 0) || cmkd_policy_variants(CMKD_AUGMENT_CROP_FLIP) != 162) return 1;
  if (cmkd_cache_open("/no/such/cache.h5", &cache, &err) != CMKD_ERR_IO) return 1;
  if (!strstr(err.message, "/no/such/cache.h5")) return 1;
  return 0;
}
C
cc=${CC:-cc}
check 'shared library through pkg-config' bash -c "$cc -std=c17 -Wall -Werror -o '$stage/shared' '$stage/user.c' \$(pkg-config --define-variable=prefix='$root' --cflags --libs cmkd) && LD_LIBRARY_PATH='$root/lib' '$stage/shared'"
check 'the program asks for the soname' bash -c "readelf -d '$stage/shared' | grep -q 'NEEDED.*libcmkd.so.0'"
check 'static library through pkg-config' bash -c "$cc -std=c17 -o '$stage/static' '$stage/user.c' \$(pkg-config --define-variable=prefix='$root' --static --cflags --libs cmkd | sed 's/-lcmkd/-l:libcmkd.a/') && '$stage/static' && ! readelf -d '$stage/static' | grep -q libcmkd"
if command -v "${CXX:-g++}" > /dev/null; then
  sed 's/static _Alignas(64)/alignas(64) static/; s/, .epoch = 1//' "$stage/user.c" > "$stage/user.cpp"
  check 'headers from C++' bash -c "${CXX:-g++} -std=c++20 -fsyntax-only '$stage/user.cpp' \$(pkg-config --define-variable=prefix='$root' --cflags cmkd)"
else echo "note: headers were not read by a C++ compiler: ${CXX:-g++} is not here"; fi
check 'exports only cmkd_*' bash -c "! nm -D --defined-only '$root/lib/libcmkd.so' | grep -v ' cmkd_'"
for header in "$root"/include/cmkd/*.h; do
  check "$(basename "$header") stands alone" bash -c "echo '#include <cmkd/$(basename "$header")>' | $cc -std=c17 -Wall -Wextra -Werror -I'$root/include' -fsyntax-only -x c -"
done
for program in cmkd-cache cmkd-train; do
  check "$program starts" "$root/bin/$program" --help
  check "$program needs no CUDA" bash -c "! readelf -d '$root/bin/$program' | grep -qiE 'NEEDED.*(cuda|cudnn|cublas)'"
done
check 'HDF5 plugin' test -f "$root/lib/cmkd/libh5zstd.so"
check uninstall run_make uninstall
check 'nothing left behind' bash -c "[ -z \"\$(find '$root' -type f -o -type l)\" ]"
finish
