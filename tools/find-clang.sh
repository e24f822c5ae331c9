#!/usr/bin/env bash
# Prints the path of a clang that compiles and links a libFuzzer program; the runtime is a package of its own on some
# systems. DEEPWELL_CLANG names one to use; else `clang`, else the newest with a version in its name.
set -euo pipefail

candidates=(clang clang-{22,21,20,19,18,17,16,15,14})
[ -z "${DEEPWELL_CLANG:-}" ] || candidates=("$DEEPWELL_CLANG")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/probe.c" <<'EOF'
int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long size);
int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long size) {
    return data && size > 9;
}
EOF
for candidate in "${candidates[@]}"; do
    if command -v "$candidate" >/dev/null &&
        "$candidate" -fsanitize=fuzzer,address,undefined "$folder/probe.c" -o "$folder/probe" 2>/dev/null; then
        command -v "$candidate"
        exit 0
    fi
done

if [ -n "${DEEPWELL_CLANG:-}" ]; then
    echo "tools/find-clang.sh: DEEPWELL_CLANG is \"$DEEPWELL_CLANG\", which cannot build a libFuzzer program" >&2
    exit 1
fi
packages=clang
if command -v apt-cache >/dev/null && apt-cache show clang-14 >/dev/null 2>&1; then
    packages=clang-14
    ! apt-cache show libclang-rt-14-dev >/dev/null 2>&1 || packages+=" libclang-rt-14-dev"
fi
echo "tools/find-clang.sh: no clang with libFuzzer found. Run: sudo apt-get install -y $packages" >&2
exit 1
