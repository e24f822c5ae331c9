# Deepwell. `make help` lists the targets; `make demo` and `make test` need nothing before them.
SHELL := /bin/bash
.DEFAULT_GOAL := build
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
VENV := .venv
BIN := $(VENV)/bin
RELEASE := build/release
# PYTHON=... names the Python that .venv is made from (tools/find-python.sh chooses otherwise), and the one that runs the
# GPU targets with the PyTorch installed beside it.
export PYTHON
GPU_PYTHON := $(or $(PYTHON),python3)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

# Everything the installed package is built from. Folders count too: their time changes when a file is removed.
SOURCES := CMakeLists.txt pyproject.toml \
    $(shell find cmake include src cli python/csrc tests/c -not -name '.*' 2>/dev/null) \
    $(shell find python/deepwell -type f -not -name '*.pyc' 2>/dev/null)
C_FILES = $(shell find include src cli python/csrc tests examples bench -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh')
PYTHON_FOLDERS := python tests bench tools

.PHONY: help setup build demo test test-c test-python test-install test-sanitize fuzz test-aarch64 lint format bench \
        plots docs install clean distclean wheel test-gpu bench-gpu

help: ## list every target
	@grep -hE '^[a-z0-9-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.stamp-packages ## install what a bare machine lacks: system packages, .venv, Python packages

build: $(RELEASE)/.stamp-installed ## build everything and install it into .venv

demo: build ## train a small GPT in full precision and through Deepwell; writes demo-report.html and demo-report.json
	@$(BIN)/python -m deepwell.demo

test: test-c test-python test-install ## run all tests

test-c: build ## run the C tests
	$(BIN)/ctest --test-dir $(RELEASE) --output-on-failure -j $(JOBS)

test-python: build ## run the Python tests
	$(BIN)/python -m pytest

test-install: build ## build the C example against an installed copy
	bash tools/test-install.sh $(RELEASE)

test-sanitize: setup ## run the C tests under the address and undefined-behaviour sanitizers
	bash tools/test-sanitize.sh

fuzz: setup ## fuzz the file readers for FUZZ_SECONDS each (installs clang)
	bash tools/setup-system.sh fuzz
	bash tools/fuzz.sh $(FUZZ_SECONDS)

test-aarch64: setup ## cross-compile for aarch64 and run the C tests under qemu (installs both)
	bash tools/setup-system.sh aarch64
	bash tools/test-aarch64.sh

test-gpu: ## run the GPU tests (needs a supported GPU; PYTHON=... names a Python with PyTorch and deepwell)
	$(GPU_PYTHON) -m pytest tests/gpu

bench: build ## measure this machine's processor and write bench/results/cpu
	$(BIN)/python -m bench.cpu

bench-gpu: ## measure this machine's GPU and write bench/results/<gpu> (PYTHON=... as for test-gpu)
	$(GPU_PYTHON) -m bench.gpu

plots: build ## draw plots and tables, and the planner's figures, from bench/results
	$(BIN)/python -m bench.plots
	$(BIN)/python tools/plan_evidence.py
	@$(MAKE) --no-print-directory build
	$(BIN)/python -m bench.plan_accuracy

docs: build ## write docs/kernels.md from the kernel table, docs/command.md from the command
	$(BIN)/python tools/kernel_docs.py
	$(BIN)/python tools/command_docs.py

lint: setup ## check format, style, headers and freshness of generated text
	bash tools/lint.sh

format: setup ## format C, CUDA and Python sources
	$(BIN)/clang-format -i $(C_FILES)
	$(BIN)/ruff format -q $(PYTHON_FOLDERS)
	$(BIN)/ruff check -q --fix $(PYTHON_FOLDERS)

wheel: build ## leave the wheel in dist/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip --disable-pip-version-check -q wheel --no-build-isolation \
	    --no-deps -w dist -C build-dir=$(RELEASE) .

install: build ## install library, headers and command below PREFIX (default /usr/local)
	$(BIN)/cmake --install $(RELEASE) --component devel --prefix "$(PREFIX)"

clean: ## remove what the build made
	rm -rf build dist

distclean: clean ## remove the virtual environment too
	rm -rf $(VENV)

# Order-only where a rebuilt prerequisite changes nothing: after `make clean` the system is looked over again, which
# takes a moment, but the Python packages stay.
build/.stamp-system: tools/setup-system.sh tools/find-python.sh
	@bash tools/setup-system.sh
	@mkdir -p $(@D) && touch $@

$(VENV)/.stamp-packages: requirements.txt requirements-cuda.txt tools/setup-python.sh | build/.stamp-system
	@bash tools/setup-python.sh
	@touch $@

$(RELEASE)/.stamp-installed: $(VENV)/.stamp-packages $(SOURCES)
	@echo "Building Deepwell"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip --disable-pip-version-check -qq install --no-build-isolation \
	    --no-deps --force-reinstall -C build-dir=$(RELEASE) -C cmake.define.DEEPWELL_TESTS=ON .
	@touch $@
