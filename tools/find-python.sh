#!/usr/bin/env bash
# Prints the Python that .venv is made from: $PYTHON when set, else the first of python3, python3.14 … python3.10 that is
# new enough. Looks past .venv's own python3 where that is on PATH, so that the answer survives its removal.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=:$PATH:
PATH=${PATH//:$PWD\/.venv\/bin:/:}
PATH=${PATH#:}
PATH=${PATH%:}
new_enough='import sys; raise SystemExit(sys.version_info < (3, 10))'
if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
else
    candidates=(python3 python3.13 python3.12 python3.11 python3.10 python3.14)
fi
tried=()
for candidate in "${candidates[@]}"; do
    path=$(command -v "$candidate") || continue
    if "$path" -c "$new_enough" 2>/dev/null; then
        echo "$path"
        exit 0
    fi
    tried+=("$path ($("$path" --version 2>&1 || echo 'does not run'))")
done
if [ ${#tried[@]} -eq 0 ]; then
    found="none of ${candidates[*]} is on PATH"
else
    found="found ${tried[*]}"
fi
echo "Deepwell needs Python 3.10 or newer; $found. Install one, then run: make PYTHON=/path/to/python3" >&2
exit 1
