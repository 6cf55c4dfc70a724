#!/usr/bin/env bash
# .ci/deps against a made-up machine: dpkg-query, apt-get, id and sudo are stand-ins that record what they were asked.
set -u
cd "$(dirname "$0")/.."
passed=0 failed=0
world=$(mktemp -d "${TMPDIR:-/tmp}/cmkd-deps-XXXXXX"); trap 'rm -rf "$world"' EXIT
mkdir "$world/bin" "$world/build"
for tool in bash env grep tail mktemp rm cat sed pkg-config; do
  path=$(command -v $tool) && ln -s "$path" "$world/bin/$tool"
done
stub() { printf '#!%s\n%s\n' "$(command -v bash)" "$2" > "$world/bin/$1"; chmod +x "$world/bin/$1"; }
# the last argument is the package; $world/absent lists what is not installed
stub dpkg-query "grep -qx -- \"\${@: -1}\" '$world/absent' && exit 1; printf installed"
stub apt-get "echo \"apt-get \$*\" >> '$world/calls'
for word in \"\$@\"; do grep -qx -- \"\$word\" '$world/broken' && { echo 'Reading...'; echo \"E: no \$word for you\"; exit 100; }; done
for word in \"\$@\"; do sed -i \"/^\$word\$/d\" '$world/absent'; done; exit 0"
stub id "cat '$world/uid'"
run() { PATH=$world/bin "$world/bin/bash" .ci/deps "$world/build" > "$world/out" 2>&1 < /dev/null; status=$?; }
machine() { # UID, absent..., then run
  echo "$1" > "$world/uid"; shift
  printf '%s\n' "$@" > "$world/absent"; : > "$world/calls"; : > "$world/build/config.mk"
  run
}
check() { # NAME, CONDITION
  if eval "$2"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "$1: FAILED: $2 (status $status)"; cat "$world/out" "$world/calls"; fi
}
says() { grep -qF -- "$1" "$world/out"; }
calls() { grep -c "$1" "$world/calls"; }
lines() { grep -c '' "$world/out"; }
: > "$world/broken"

machine 1000
check 'all present: one line, nothing run' '[ $status -eq 0 ] && [ "$(lines)" = 1 ] && ! [ -s "$world/calls" ] && [ -f "$world/build/config.mk" ]'
machine 0 libzstd-dev libdnnl-dev
check 'root: one update, says what it does' '[ $status -eq 0 ] && [ "$(calls update)" = 1 ] && says "apt-get install --no-install-recommends libzstd-dev libdnnl-dev"'
check 'root: installs just that' '[ "$(calls install)" = 2 ] && [ "$(calls "install.* libzstd-dev")" = 1 ] && ! grep -qiE "cuda|nvidia" "$world/calls"'
check 'the next make looks again' '! [ -f "$world/build/config.mk" ]'
run
check 'a second time: nothing to do' '[ $status -eq 0 ] && [ "$(calls update)" = 1 ] && says "all there"'
machine 1000 libzstd-dev
check 'neither root nor sudo: one line with the command' '[ $status -eq 1 ] && [ "$(lines)" = 1 ] && says "apt-get install -y libzstd-dev" && ! [ -s "$world/calls" ]'
machine 1000 dataset-fashion-mnist
check 'only an optional one, no root: goes on' '[ $status -eq 0 ] && says "goes on without dataset-fashion-mnist" && ! [ -s "$world/calls" ]'
echo libdnnl-dev > "$world/broken"
machine 0 libhdf5-dev libdnnl-dev
check 'an optional one cannot be had: goes on with a note' '[ $status -eq 0 ] && says "no libdnnl-dev for you" && says "our own kernels" && [ "$(calls "install.* libhdf5-dev")" = 1 ]'
echo libhdf5-dev > "$world/broken"
machine 0 libhdf5-dev
check 'a required one cannot be had: fails and says why' '[ $status -eq 1 ] && says "no libhdf5-dev for you"'
echo update > "$world/broken"
machine 0 libhdf5-dev
check 'update fails: tries the lists at hand' '[ $status -eq 0 ] && says "apt-get update failed" && [ "$(calls "install.* libhdf5-dev")" = 1 ]'
: > "$world/broken"
stub sudo "echo \"sudo \$*\" >> '$world/calls'; [ \"\$1\" = -n ] && shift; exec \"\$@\""
stub true 'exit 0'
machine 1000 libjansson-dev
check 'sudo without a password' '[ $status -eq 0 ] && [ "$(calls "^sudo env .*apt-get .*install.* libjansson-dev")" = 1 ]'
rm "$world/bin/apt-get"
machine 0 libzstd-dev
check 'no apt and no compiler: says what to install' '[ $status -eq 1 ] && [ "$(lines)" = 1 ] && says "HDF5, zstd, zlib, jansson, OpenSSL and cmocka"'

echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
exit $((failed != 0))
