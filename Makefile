# The commands of a working copy. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# --no-compile: a minute less; Python compiles what it imports
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile
REQUIREMENTS := requirements/run.txt requirements/dev.txt requirements/demo.txt pyproject.toml
DEMO_ARGS ?=
BENCH_ARGS ?=
TEST_ARGS ?=

# tests and demo read local files only
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# mkdocs-material advertises its successor otherwise
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup test test-faults lint types unit docs pages demo bench format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp  ## .venv with pinned requirements, crosskd itself and the demo's two models

# the stamp is written last, so that an interrupted set-up starts again
$(VENV)/.stamp: $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit("the pinned requirements need Python 3.11 or later; name one: make setup PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/dev.txt
	$(PIP) --no-build-isolation --no-deps -e .
	$(PIP) --no-deps -r requirements/demo.txt
	@touch $@

test: lint types pages unit  ## everything that must pass: lint, types, docs, all tests

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: setup  ## pytest in two processes; TEST_ARGS="-k sinkhorn" chooses
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n 2 $(TEST_ARGS)

test-faults: setup  ## what takes minutes: kills at random moments, full disks, long property runs
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n 2 -m faults $(TEST_ARGS)

docs: setup  ## build the documentation into site/; a broken link fails
	$(BIN)/mkdocs build --strict

pages: setup
	$(BIN)/mkdocs build --strict --site-dir $(abspath $(VENV))/site

demo: setup  ## distil a real small model; DEMO_ARGS=--quick for a short one, --resume to go on
	$(BIN)/crosskd demo $(if $(findstring --resume,$(DEMO_ARGS)),,--overwrite) $(DEMO_ARGS)

bench: setup  ## time and memory of losses and training; BENCH_ARGS=--quick for a short one
	$(BIN)/python benchmarks/losses.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/training.py $(BENCH_ARGS)

format: setup  ## let ruff fix rules and format, and renew the file of flags
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m crosskd.cli.flags

clean:  ## remove what was built, .venv and caches; runs/ stays
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
