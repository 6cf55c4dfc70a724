#!/usr/bin/env bash
# The README's two commands on a fresh machine: tests/fresh.sh debian12|debian13 [FOLDER]
#
# Makes the smallest Debian of that version (debootstrap --variant=minbase: no compiler, no Python), puts the files of
# HEAD into it and runs `make demo` and `make check` there, as root, with `make` alone installed before. Prints the
# versions it found, what every test program said in one line, and the seconds; the whole output stays in
# FOLDER/VERSION-{demo,check}.log. Exits 0 when both commands did.
#
# Needs root, debootstrap and a Debian mirror ($CMKD_DEBIAN_MIRROR, http://deb.debian.org/debian). FOLDER
# (${TMPDIR:-/tmp}/cmkd-fresh, about 2 GB) keeps the bare system, so that a second run begins sooner; every run works in
# a copy of it, which is removed. $CMKD_FRESH_MAKE: arguments for make, such as -j2. $CMKD_FRESH_GOALS: one of the two
# commands alone (demo check).
set -eu
[ $# -lt 2 ] || set -- "$1" "$(realpath -m "$2")"
cd "$(dirname "$(realpath "$0")")/.."
case ${1:-} in
  debian12) suite=bookworm ;;
  debian13) suite=trixie ;;
  *) sed -n 's/^# \{0,1\}//; 2p' "$0" >&2; exit 2 ;;
esac
fail() { echo "fresh: $*" >&2; exit 1; }
[ "$(id -u)" -eq 0 ] || fail 'needs root (debootstrap and chroot)'
command -v debootstrap > /dev/null || fail 'needs debootstrap (apt-get install debootstrap)'
git rev-parse --verify -q HEAD > /dev/null || fail 'needs the git repository, of which it takes HEAD'
# mounts of its own: they end with this process, however it ends
[ -n "${CMKD_FRESH_MOUNTS:-}" ] || CMKD_FRESH_MOUNTS=1 exec unshare --mount tests/fresh.sh "$@"
folder=${2:-${TMPDIR:-/tmp}/cmkd-fresh} mirror=${CMKD_DEBIAN_MIRROR:-http://deb.debian.org/debian}
mkdir -p "$folder"
bare=$folder/$suite root=$folder/$suite-run

# Ends what still runs in there (make goes on after this script was told to stop), and takes the mounts away.
leave() {
  local at
  for at in /proc/[0-9]*; do
    if [ "$(readlink "$at/root")" = "$root" ]; then kill -KILL "${at#/proc/}" 2> /dev/null || true; fi
  done
  for at in proc sys dev/pts dev/shm; do
    if mountpoint -q "$root/$at"; then umount "$root/$at" || umount -l "$root/$at"; fi
  done
  ! grep -q " $root/" /proc/self/mounts || fail "something is still mounted under $root; it is left as it is"
}
trap 'leave && rm -rf --one-file-system "$root"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
[ ! -e "$root" ] || { leave; rm -rf --one-file-system "$root"; } # of a run that was killed

if [ ! -e "$bare/made" ]; then
  echo "fresh: debootstrap of $suite"
  rm -rf "$bare"
  debootstrap --variant=minbase "$suite" "$bare" "$mirror" > "$folder/$suite-debootstrap.log" 2>&1 ||
    fail "debootstrap failed; see $folder/$suite-debootstrap.log"
  touch "$bare/made"
fi
cp -a "$bare" "$root"
mkdir -p "$root/home/cmkd"
git archive HEAD | tar -x -C "$root/home/cmkd"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sys "$root/sys"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs shm "$root/dev/shm"

inside() { # COMMAND...: in the repository in the new system, with an environment of its own
  chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
    ${http_proxy:+http_proxy="$http_proxy"} /bin/sh -c "cd /home/cmkd && $*" < /dev/null
}
inside 'apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends make' \
  > "$folder/$suite-apt.log" 2>&1 || fail "no make: see $folder/$suite-apt.log"
echo "== $(inside '. /etc/os-release; echo $PRETTY_NAME'), $(nproc) cores, $(git rev-parse --short HEAD)"

status=0 versions=
for goal in ${CMKD_FRESH_GOALS:-demo check}; do
  began=$SECONDS log=$folder/$suite-$goal.log
  inside "make ${CMKD_FRESH_MAKE:-} $goal" > "$log" 2>&1 & child=$!
  if wait $child; then result=passed; else result=FAILED status=1; fi
  echo "== make $goal: $result, $((SECONDS - began)) s"
  if [ -z "$versions" ]; then
    versions=told
    inside 'dpkg-query -W -f "\${Package} \${Version}\n" gcc libhdf5-dev libdnnl-dev libcmocka-dev libzstd-dev libjansson-dev libssl-dev python3' \
      2> /dev/null | sed 's/^/   /' || true
    inside 'command -v python3' > /dev/null || echo '   no python3'
  fi
  if [ $goal = demo ]; then sed -n '/with the teacher live/,/^ *CMKD /p' "$log"
  else grep -E '^(== |skipped: |failed: |[0-9]+ passed)' "$log" || true; fi
  [ $result = passed ] || { echo "   the last lines of $log:"; tail -n 40 "$log"; }
done
exit $status
