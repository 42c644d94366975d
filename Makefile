# Every target makes what it needs. Choose the interpreter with PYTHON=python3.12, and another build of torch
# with TORCH_INDEX, for example TORCH_INDEX=https://download.pytorch.org/whl/cpu (on Linux much the smaller one).

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# One thread for each test process: two OpenMP pools on the same cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: quickstart test test-slow campaign lint types bench size clean help

quickstart: $(VENV)/core.stamp  ## install, train a small model and its student, measure, export, report (minutes)
	$(BIN)/behemoth run recipes/quickstart.toml --out runs/quickstart

test: $(VENV)/dev.stamp  ## the default tests (under five minutes)
	$(PYTEST)

test-slow: $(VENV)/dev.stamp  ## the tests that take minutes each
	$(PYTEST) -m slow --timeout 2700

campaign: $(VENV)/dev.stamp  ## the full counts: seeds, kills, large corpora (hours)
	$(PYTEST) -m campaign --timeout 0

lint: $(VENV)/dev.stamp  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp  ## static types
	$(BIN)/mypy

bench: $(VENV)/dev.stamp  ## one script for each claim of speed
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

size:  ## lines of Python by folder
	@find $(wildcard src tests benchmarks examples) -name '*.py' | sort | xargs wc -l | awk \
	  '$$2 != "total" { sub("/[^/]*$$", "", $$2); lines[$$2] += $$1; all += $$1 } \
	   END { for (folder in lines) printf "%6d  %s\n", lines[folder], folder; printf "%6d  in all\n", all }' | sort -k 2

clean:  ## remove caches and build leftovers; keeps runs/ and the virtual environment
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard src tests benchmarks examples) -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

# A stamp per kind of installation, so that the second call is instant; pyproject.toml makes it stale.
$(VENV)/core.stamp: pyproject.toml | $(BIN)/python
	@echo 'Installing into $(VENV), once; torch is the large part.'
	$(PIP) install --quiet --editable . $(INDEX)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	@echo 'Installing into $(VENV), once; torch is the large part.'
	$(PIP) install --quiet --editable '.[dev]' $(INDEX)
	@touch $@ $(VENV)/core.stamp

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; \
	this is " + sys.version.split()[0] + ". Choose another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
