#!/usr/bin/env bash
# Installs the build BUILD below a temporary prefix and uses it as a stranger would: the C example through pkg-config, and
# through CMake with the shared and with the static library. Then looks at what the shared library shows and needs.
#   tools/test-install.sh BUILD
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?usage: tools/test-install.sh BUILD}
cmake=.venv/bin/cmake
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
prefix="$scratch/a prefix" # a space finds unquoted paths
fail() {
    echo "test-install: $*" >&2
    exit 1
}

"$cmake" --install "$build" --component devel --prefix "$prefix" >"$scratch/log" || { cat "$scratch/log" >&2 && fail "cmake --install failed"; }
libdir=$(dirname "$(find "$prefix" -name libdeepwell.so)")
[ -f "$libdir/libdeepwell.a" ] || fail "libdeepwell.a is not installed"
for header in include/deepwell/*.h; do
    cmp -s "$header" "$prefix/$header" || fail "$header is not installed as it stands"
done
check() { # program: runs, gives a plausible SQNR, lists the reference kernel
    local output
    output=$("$@") || fail "$* failed"
    grep -Eq 'quantization noise: (2[89]|3[0-4])\.' <<<"$output" || fail "$*: no SQNR of 28 to 34 dB in: $output"
    grep -Eq '__ref +available' <<<"$output" || fail "$*: no available reference kernel in: $output"
}

# pkg-config. eval, because pkg-config escapes the space for a shell.
export PKG_CONFIG_PATH="$libdir/pkgconfig"
[ "$(pkg-config --modversion deepwell)" = "$(sed -n 's/^project(deepwell VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)" ] ||
    fail "pkg-config tells another version than CMakeLists.txt"
eval cc -std=c17 -Wall -Wextra -Werror examples/c/quantize_matrix.c "$(pkg-config --cflags --libs deepwell)" -lm -o "'$scratch/pc_shared'"
LD_LIBRARY_PATH="$libdir" check "$scratch/pc_shared"
LD_LIBRARY_PATH="$libdir" check "$scratch/pc_shared" 33 65

# CMake.
"$cmake" -S examples/c -B "$scratch/example" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_C_FLAGS="-Wall -Wextra -Werror" >"$scratch/log" 2>&1 &&
    "$cmake" --build "$scratch/example" >>"$scratch/log" 2>&1 || { cat "$scratch/log" >&2 && fail "the example does not build with CMake"; }
check "$scratch/example/quantize_matrix_shared"
check "$scratch/example/quantize_matrix_static"
if ldd "$scratch/example/quantize_matrix_static" | grep -q deepwell; then
    fail "the static example needs libdeepwell.so"
fi

# The command stands on its own, too.
if [ -x "$prefix/bin/deepwell" ]; then
    "$prefix/bin/deepwell" info >/dev/null || fail "the installed command fails: deepwell info"
fi

# What the library shows and needs.
foreign=$(nm -D --defined-only "$libdir/libdeepwell.so" | awk '{print $3}' | grep -v '^dw_' || true)
[ -z "$foreign" ] || fail "libdeepwell.so exports more than dw_*:" $foreign
declared=$(grep -hE '^DW_API' include/deepwell/*.h | grep -oE '\bdw_[a-z0-9_]+\(' | tr -d '(' | sort -u)
exported=$(nm -D --defined-only "$libdir/libdeepwell.so" | awk '{print $3}' | sort -u)
[ "$declared" = "$exported" ] || fail "headers and exports differ:" $(comm -3 <(echo "$declared") <(echo "$exported"))
needed=$(ldd "$libdir/libdeepwell.so" | awk '{print $1}' | grep -vE '^(linux-vdso|libc|libm|libdl|libpthread)\.so|/ld-linux' || true)
[ -z "$needed" ] || fail "libdeepwell.so needs more than the C library:" $needed
echo "test-install: pkg-config, CMake shared and static, exports and dependencies are in order"
