# Deepwell. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := build
PYTHON ?= python3
JOBS ?= $(shell nproc)
VENV := .venv
BIN := $(VENV)/bin
RELEASE := build/release
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export PATH := $(CURDIR)/$(BIN):$(PATH)

SOURCES := CMakeLists.txt pyproject.toml $(shell find cmake include src cli python tests/c -type f \
             -not -name '*.pyc' -not -path '*/__pycache__*' 2>/dev/null)
C_FILES := $(shell find include src cli python/csrc tests examples bench -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: help setup build demo test test-c test-python test-install test-sanitize fuzz test-aarch64 lint format bench \
        plots install clean distclean wheel test-gpu bench-gpu

help: ## list every target
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.stamp-packages ## install what a bare machine lacks: system packages, .venv, Python packages

build: $(VENV)/.stamp-deepwell ## build everything and install it into .venv

demo: build ## train a small GPT in full precision and through Deepwell; writes demo-report.html and demo-report.json
	$(BIN)/python -m deepwell.demo

test: test-c test-python test-install ## run all tests

test-c: build ## run the C tests
	$(BIN)/ctest --test-dir $(RELEASE) --output-on-failure -j $(JOBS)

test-python: build ## run the Python tests
	$(BIN)/python -m pytest

test-install: build ## build the C example against an installed copy
	bash tools/test-install.sh $(RELEASE)

test-sanitize: setup ## run the C tests under the address and undefined-behaviour sanitizers
	bash tools/test-sanitize.sh

fuzz: setup ## fuzz the file readers for FUZZ_SECONDS each (needs clang)
	bash tools/fuzz.sh $(FUZZ_SECONDS)

test-aarch64: setup ## cross-compile for aarch64 and run the C tests under qemu
	bash tools/test-aarch64.sh

test-gpu: ## run the GPU tests (needs a supported GPU; uses $(PYTHON) and its PyTorch)
	$(PYTHON) -m pytest tests/gpu

bench: build ## measure this machine's processor and write bench/results/cpu
	$(BIN)/python -m bench.cpu

bench-gpu: ## measure this machine's GPU and write bench/results/<gpu> (uses $(PYTHON) and its PyTorch)
	$(PYTHON) -m bench.gpu

plots: setup ## draw the plots and the README's tables from bench/results
	$(BIN)/python -m bench.plots

lint: setup ## check format, style and freshness of generated text
	bash tools/lint.sh

format: setup ## format C and Python sources
	$(BIN)/clang-format -i $(C_FILES)
	$(BIN)/ruff format -q python tests bench tools
	$(BIN)/ruff check -q --fix python tests bench tools

wheel: build ## leave the wheel in dist/
	$(BIN)/pip wheel -q --no-build-isolation --no-deps -w dist -C build-dir=$(RELEASE) .

install: build ## install library, headers and command below PREFIX (default /usr/local)
	$(BIN)/cmake --install $(RELEASE) --component devel --prefix $(PREFIX)

clean: ## remove what the build made
	rm -rf build dist $(VENV)/.stamp-deepwell

distclean: clean ## remove the virtual environment too
	rm -rf $(VENV)

build/.stamp-system: tools/setup-system.sh
	bash tools/setup-system.sh
	@mkdir -p build && touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-packages: requirements.txt build/.stamp-system | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

$(VENV)/.stamp-deepwell: $(VENV)/.stamp-packages $(SOURCES)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps --force-reinstall \
	    -C build-dir=$(RELEASE) -C cmake.define.DEEPWELL_TESTS=ON .
	@touch $@
