#!/usr/bin/env bash
# Installs the system packages that the build and the tests need. Uses apt when it may (root, or sudo without a
# password); otherwise prints the one command to run and fails.
set -euo pipefail

missing=()
need_header() { # package header
    echo "#include <$2>" | cc -E -x c - >/dev/null 2>&1 || missing+=("$1")
}
need_command() { # package command
    command -v "$2" >/dev/null 2>&1 || missing+=("$1")
}

need_command gcc cc
need_command g++ g++
need_command pkg-config pkg-config
need_header libjansson-dev jansson.h
need_header libpopt-dev popt.h
need_header libc6-dev stdio.h
# cmocka.h wants these four before it.
printf '#include <stdarg.h>\n#include <stddef.h>\n#include <setjmp.h>\n#include <stdint.h>\n#include <cmocka.h>\n' |
    cc -E -x c - >/dev/null 2>&1 || missing+=(libcmocka-dev)
python=${PYTHON:-python3}
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    missing+=(python3-dev)

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ]; then
    run=(env DEBIAN_FRONTEND=noninteractive)
elif sudo -n true 2>/dev/null; then
    run=(sudo env DEBIAN_FRONTEND=noninteractive)
else
    run=()
fi
if [ ${#run[@]} -eq 0 ] || ! command -v apt-get >/dev/null; then
    echo "Missing system packages. Run: sudo apt-get install -y ${missing[*]}" >&2
    exit 1
fi
echo "Installing system packages: ${missing[*]}"
"${run[@]}" apt-get install -y -qq "${missing[@]}" >/dev/null 2>&1 || {
    "${run[@]}" apt-get update -qq
    "${run[@]}" apt-get install -y -qq "${missing[@]}" >/dev/null
}
