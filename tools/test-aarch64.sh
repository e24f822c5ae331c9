#!/usr/bin/env bash
# Cross-compiles for aarch64 and runs the C tests under qemu's user emulation: the portable build with the reference
# kernels. `tools/setup-system.sh aarch64` installs what it needs.
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
    -DCMAKE_CROSSCOMPILING_EMULATOR="$emulator;-L;/usr/$triple" -DDEEPWELL_TESTS=ON -DDEEPWELL_CUDA=OFF >/dev/null
"$bin/cmake" --build $build
"$bin/ctest" --test-dir $build --output-on-failure --no-tests=error --timeout 1500 -j "$(nproc)"
