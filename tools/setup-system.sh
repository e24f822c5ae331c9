#!/usr/bin/env bash
# Installs the system packages that are missing. Uses apt when it may (root, or sudo without a password); otherwise
# prints the one command to run and fails.
#   tools/setup-system.sh            what the build and the tests need
#   tools/setup-system.sh fuzz       clang, for libFuzzer
#   tools/setup-system.sh aarch64    cross compiler, emulator and libraries for `make test-aarch64`
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
need_command() { # package command
    command -v "$2" >/dev/null 2>&1 || missing+=("$1")
}
need_header() { # package header...: the last one is wanted, those before it must be included first
    local package=$1
    shift
    printf '#include <%s>\n' "$@" | cc -E -x c - >/dev/null 2>&1 || missing+=("$package")
}
need_package() { # package[:architecture]
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed' || missing+=("$1")
}

before=""
case "${1:-build}" in
build)
    need_command gcc cc
    need_command g++ g++ # the device compiler preprocesses with it
    need_command pkg-config pkg-config
    need_header libc6-dev stdio.h
    need_header libjansson-dev jansson.h
    need_header libpopt-dev popt.h
    need_header libcmocka-dev stdarg.h stddef.h setjmp.h stdint.h cmocka.h
    python=$(bash tools/find-python.sh)
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    # Distributions split these two off their Python; any other Python brings them along.
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$version-venv")
    "$python" -c 'import os, sysconfig as s; raise SystemExit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
        missing+=("$version-dev")
    ;;
fuzz) # any version that can build a fuzzer will do
    bash tools/find-clang.sh >/dev/null 2>&1 || missing+=(clang)
    ;;
aarch64)
    need_command gcc-aarch64-linux-gnu aarch64-linux-gnu-gcc
    command -v qemu-aarch64 >/dev/null || need_command qemu-user-static qemu-aarch64-static
    for library in libjansson-dev libpopt-dev libcmocka-dev; do
        need_package "$library:arm64"
    done
    dpkg --print-foreign-architectures | grep -qx arm64 || before="dpkg --add-architecture arm64"
    ;;
*)
    echo "tools/setup-system.sh: unknown group '$1'; expected build, fuzz or aarch64" >&2
    exit 2
    ;;
esac

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ]; then
    as_root=(env)
elif sudo -n true 2>/dev/null; then
    as_root=(sudo env)
else
    as_root=()
fi
if [ ${#as_root[@]} -eq 0 ] || ! command -v apt-get >/dev/null; then
    echo "Missing system packages. Run: ${before:+sudo $before && sudo apt-get update && }sudo apt-get install -y ${missing[*]}" >&2
    exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    "${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1
}
install=(install -y)
[ "${1:-build}" = fuzz ] || install+=(--no-install-recommends) # clang's sanitizer runtimes are only recommended
echo "Installing system packages: ${missing[*]}"
if [ -n "$before" ]; then
    "${as_root[@]}" $before
fi
# The package lists of a fresh machine are empty or old: refresh them when the first try fails.
apt "${install[@]}" "${missing[@]}" || { apt update && apt "${install[@]}" "${missing[@]}"; } || {
    cat "$log" >&2
    echo "Installing ${missing[*]} failed; the words of apt-get are above" >&2
    exit 1
}
