#!/usr/bin/env bash
# Cross-compiles for aarch64 and runs the C tests under qemu's user emulation: the portable build with the reference
# kernels. `tools/setup-system.sh aarch64` installs what it needs.
#
# The arm64 C library comes from the system's arm64 packages, not from the cross compiler's own tree: with `-L` on that
# tree, qemu 7.2 hangs in the first pthread_create.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/aarch64
bin=$PWD/.venv/bin
triple=aarch64-linux-gnu
emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static) && command -v $triple-gcc >/dev/null || {
    echo "No cross compiler or emulator for aarch64. Run: bash tools/setup-system.sh aarch64" >&2
    exit 1
}
"$bin/cmake" -S . -B $build -G Ninja -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=$triple-gcc -DCMAKE_LIBRARY_ARCHITECTURE=$triple \
    -DCMAKE_FIND_ROOT_PATH="/usr/$triple;/usr/lib/$triple" -DCMAKE_FIND_ROOT_PATH_MODE_LIBRARY=ONLY \
    -DCMAKE_CROSSCOMPILING_EMULATOR="$emulator" -DDEEPWELL_TESTS=ON -DDEEPWELL_CUDA=OFF >/dev/null
"$bin/cmake" --build $build -j "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
DEEPWELL_TEST_EMULATED=1 "$bin/ctest" --test-dir $build --output-on-failure --no-tests=error -j "$(nproc)"
