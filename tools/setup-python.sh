#!/usr/bin/env bash
# Makes .venv and installs the pinned packages: requirements.txt into the environment itself, the device compiler of
# requirements-cuda.txt into .venv/cuda, apart from PyTorch, whose CUDA build pins another release of the same packages.
# Quiet but for one line a step; whatever fails is shown.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(bash tools/find-python.sh)
    echo "Creating $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check -qq)
echo "Installing Python packages into $venv (minutes, the first time)"
"${pip[@]}" install --progress-bar off "pip>=25" # what a distribution brings may be too old for the build's options
"${pip[@]}" install --progress-bar off -r requirements.txt

# pip --target does not look at what is there already, so this step keeps a copy of the list it last installed.
if [ "$(uname -s)" = Linux ] && ! cmp -s requirements-cuda.txt "$venv/cuda/installed.txt"; then
    echo "Installing the device compiler into $venv/cuda"
    rm -rf "$venv/cuda"
    "${pip[@]}" install --progress-bar off --no-deps --target "$venv/cuda" -r requirements-cuda.txt
    cp requirements-cuda.txt "$venv/cuda/installed.txt"
fi
