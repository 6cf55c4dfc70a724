#!/usr/bin/env bash
# Every C, CUDA and C++ file is as .clang-format has it. Other major versions break some lines elsewhere, so they are not asked.
set -u
cd "$(dirname "$0")/.."
wanted=14
tool=$(command -v "clang-format-$wanted" || command -v clang-format || true)
version=$([ -z "$tool" ] || "$tool" --version | sed -nE 's/.*version ([0-9]+).*/\1/p')
if [ "$version" != "$wanted" ]; then
  echo "SKIP: test_format needs clang-format $wanted, here is ${version:-none} (apt-get install clang-format-$wanted)"
  printf '[  PASSED  ] 0 test(s).\n[  SKIPPED ] 1 test(s), listed below:\n[  SKIPPED ] format\n'
  exit 0
fi
if find base bench docs formats include kernels nets precompute tests train -name '*.[ch]' -o -name '*.cu' -o -name '*.cpp' |
  xargs "$tool" --dry-run -Werror; then
  printf '[  PASSED  ] 1 test(s).\n'
else
  echo 'run: make format'
  printf '[  FAILED  ] 1 test(s).\n'
  exit 1
fi
