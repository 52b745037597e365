# `make` prints the targets.  Needs make, and Python 3.11 or newer or uv.
VENV := .venv
BIN := $(VENV)/bin
UV := $(or $(wildcard $(BIN)/uv),uv)
TESTS ?= tests
BENCH ?=
PYTEST_FLAGS ?= --numprocesses=logical --maxprocesses=4 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help environment demo test test-slow lint fmt docs docs-write bench chaos wheel lock clean

help: ## print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

environment: $(VENV)/.ready ## make .venv with all that development needs
	@:

$(VENV)/.ready: requirements-dev.txt pyproject.toml .ci/environment
	@VENV=$(VENV) .ci/environment

demo: environment ## run more than 1,000 tasks on real files, check every result
	@$(BIN)/geres demo

test: environment ## run all tests but the slow ones (TESTS=tests/store for some of them)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m "not slow" $(TESTS)

test-slow: environment ## run the slow tests: 10 GB through a task
	$(BIN)/python -m pytest -m slow tests/acceptance

lint: environment ## style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: environment ## format, and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: environment ## build the documentation into site/, after checking its generated pages
	$(BIN)/python docs/generate.py --check
	$(BIN)/mkdocs build --strict --quiet

docs-write: environment ## write the generated pages of the documentation
	$(BIN)/python docs/generate.py

bench: environment ## measure against the bars (BENCH="commands --short" for one)
	$(BIN)/python -m bench $(BENCH)

chaos: environment ## break things: CHAOS_SECONDS of real kills under load, SCHEDULES simulated ones
	CHAOS_SECONDS=$(or $(CHAOS_SECONDS),120) $(BIN)/python -m pytest -s -m "slow or not slow" tests/chaos
	$(BIN)/python -m pytest -m slow tests/simulation
	SCHEDULES=$(or $(SCHEDULES),10000) $(BIN)/python -m tests.simulation

wheel: environment ## build the wheel into dist/
	$(BIN)/python -m build --no-isolation --wheel

lock: environment ## take the newest versions that pyproject.toml allows into requirements-dev.txt
	$(UV) lock --upgrade
	$(UV) export --quiet --frozen --all-extras --group dev --no-emit-project --no-header --no-annotate \
		--output-file requirements-dev.txt
	rm -f uv.lock

clean: ## remove what the other targets made, the environment too
	rm -rf $(VENV) site dist bench/out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
