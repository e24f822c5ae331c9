#!/usr/bin/env bash
# Fuzzes the readers of checkpoint files: `tools/fuzz.sh SECONDS` runs each target that long and fails on any finding.
# What a run learns stays in build/fuzz/corpus, and the next run starts from it.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || {
    echo "tools/fuzz.sh: expected a number of seconds, got \"$seconds\"" >&2
    exit 2
}

clang=$(bash tools/find-clang.sh)

cmake=.venv/bin/cmake
[ -x $cmake ] || cmake=cmake
generator=()
[ -x .venv/bin/ninja ] && generator=(-G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja")
$cmake -S . -B build/fuzz "${generator[@]}" -DCMAKE_C_COMPILER="$clang" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DDEEPWELL_FUZZ=ON -DDEEPWELL_CUDA=OFF -DDEEPWELL_TESTS=OFF -DDEEPWELL_SANITIZE=address,undefined >/dev/null
$cmake --build build/fuzz --target fuzz_safetensors fuzz_index fuzz_config >/dev/null

failed=0
for target in fuzz_safetensors fuzz_index fuzz_config; do
    mkdir -p build/fuzz/corpus/$target build/fuzz/findings
    echo "$target: $seconds s"
    log=build/fuzz/$target.log
    if build/fuzz/tests/fuzz/$target -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 \
        -dict=tests/fuzz/json.dict -artifact_prefix=build/fuzz/findings/$target- -print_final_stats=1 \
        build/fuzz/corpus/$target tests/fuzz/corpus/$target >$log 2>&1; then
        grep -E 'number_of_executed_units|cov:' $log | tail -n 2 | sed 's/^/  /'
    else
        tail -n 60 $log >&2
        echo "tools/fuzz.sh: $target found something; the input is in build/fuzz/findings, the report in $log" >&2
        failed=1
    fi
done
exit $failed
