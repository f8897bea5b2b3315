# What people type and what CI calls are the same targets.
#   make demo    environment, the miniature: convert, verify, quantize, speak «Hello world.»
#   make test    lint, types and all tests but the slow ones

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
STAMP := $(VENV)/.installed
# Files stay together, so that what one makes for all its tests is made once.
PYTEST := $(BIN)/pytest --dist loadfile --no-loadscope-reorder
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 2 ? n : 2)))
MINUTES ?= 5
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO := miniature/miniature.sft
OUT := build/demo

.PHONY: help setup locked wheel demo test test-all lint types check fuzz bench fixtures browser llama-tools clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP) ## Make the environment in .venv

# The environment of the demo. llama.cpp is compiled here, once, for library and programs, with each instruction
# set named, since a native build crashes on virtual machines that announce AMX and do not let it be used.
$(BASE): pyproject.toml constraints.txt scripts/build_llama_tools.py
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed: make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python scripts/build_llama_tools.py --install --jobs $(JOBS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[llama,speech,miniature]'
	touch $@

$(STAMP): $(BASE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[llama,speech,vallex,japanese,report,serve,miniature,dev]'
	touch $@

locked: ## Make the environment in .venv with every file checked by its hash (requirements.lock)
	$(PYTHON) -m venv $(VENV)
	CMAKE_ARGS="$$($(BIN)/python scripts/build_llama_tools.py --print-cmake-args)" \
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	$(BIN)/python -m pip install --quiet --require-hashes $(addprefix --extra-index-url ,$(TORCH_INDEX)) -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(BASE) $(STAMP)

# Its only time is that of the last commit. Not for all targets: llama.cpp's build takes the variable
# for the wish to build for every processor there is.
wheel: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1704067200)
wheel: ## Build the wheel, the same bytes each time
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

demo: $(BASE) ## Convert the miniature, verify it, quantize it, and speak into build/demo/hello.wav
	mkdir -p $(OUT)
	$(BIN)/valle-convert $(DEMO) $(OUT)/miniature.gguf --force --verify none
	$(BIN)/valle-convert inspect $(OUT)/miniature.gguf
	$(BIN)/valle-convert verify $(DEMO) $(OUT)/miniature.gguf --report $(OUT)/report.md --force
	$(BIN)/valle-convert quantize $(OUT)/miniature.gguf $(OUT)/miniature-Q4_K_M.gguf Q4_K_M --force
	$(BIN)/python -m miniature speak $(OUT)/miniature-Q4_K_M.gguf "Hello world." -o $(OUT)/hello.wav --force \
	  --codec miniature/codec.safetensors --voice miniature/voice-plain.flac \
	  --set mode=ar,prompt_seconds=0.8 --temperature 0.6 --seed 0

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types ## Lint and type check

test: check llama-tools ## Everything that CI runs: lint, types, tests
	$(PYTEST) -n $(JOBS) -m "not slow"

test-all: check llama-tools ## The slow tests too: a million strings, the production size
	$(PYTEST) -n $(JOBS)

fuzz: $(STAMP) ## Hostile inputs for every reader, for MINUTES (5); findings in build/fuzz
	$(BIN)/python -m fuzz --minutes $(MINUTES)

bench: $(STAMP) llama-tools ## Measure speed and memory; takes minutes and 5 GB of disk
	$(BIN)/python benchmarks/run.py

fixtures: $(STAMP) ## Make the generated files again
	$(BIN)/python tokenizer/build.py
	$(BIN)/python fixtures/make_ipa.py
	$(BIN)/python scripts/command_reference.py

browser: ## A Chromium for the tests of pages, where there is none and apt-get can be used
	@command -v chromium google-chrome >/dev/null || { timeout 120 apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends chromium; } || \
	  echo "no Chromium could be installed: the tests of pages are skipped, and say so"

llama-tools: $(STAMP) ## Build stock llama-quantize and llama-tokenize, where `make setup` did not leave them
	$(BIN)/python scripts/build_llama_tools.py --jobs $(JOBS)

clean: ## Remove what was built
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
