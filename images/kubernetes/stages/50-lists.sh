#!/bin/bash
# What went in: Debian's packages, and of this machine the compiler and the C library that pause is linked with.
set -euo pipefail
{
  cat "$packages/packages.txt"
  dpkg-query --show --showformat '${Package} ${Version}\n' gcc libc6-dev
} | sort >"$out/packages.txt"
