#!/usr/bin/env bash
# Builds everything but the device code with the address and undefined-behaviour sanitizers and runs the C tests.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/sanitize
bin=$PWD/.venv/bin
"$bin/cmake" -S . -B $build -G Ninja -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DDEEPWELL_SANITIZE=address,undefined -DDEEPWELL_TESTS=ON -DDEEPWELL_CUDA=OFF >/dev/null
"$bin/cmake" --build $build -j "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
"$bin/ctest" --test-dir $build --output-on-failure --no-tests=error -j "$(nproc)"
