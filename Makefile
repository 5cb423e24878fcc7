# make demo   the main job: organisms, capture, direction, steering, ablation, report (runs/demo)
# make test   the tests without the real model; `make test-slow` runs those with it
# make lint   ruff, pyright, import-linter    make docs   the site    make bench   speed against peers
PYTHON ?= python3
BIN := .venv/bin
# --no-compile: Python compiles what is imported; compiling all 2 GB takes longer than installing them
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt
PYTEST := $(BIN)/python -m pytest
ONE_BY_ONE := tests/test_demo.py tests/readers/test_smollm2.py  # the real model takes both cores

# Compiled modules are kept, whatever the environment says: compiling them again takes 10 s of every process that starts.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow lint docs bench clean

demo: .venv/core
	@$(BIN)/condmis demo --out runs/demo

test: .venv/dev
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile -m "not slow"

test-slow: .venv/dev
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m slow $(ONE_BY_ONE:%=--ignore %)
	@$(PYTEST) -m slow $(ONE_BY_ONE)

lint: .venv/dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright && $(BIN)/lint-imports

docs: .venv/docs
	@$(BIN)/mkdocs build --strict --quiet && echo "site/index.html"

bench: .venv/bench
	@for b in capture scoring sweep store memory probes training organisms; do $(BIN)/python -m benchmarks.$$b || exit 1; done

.venv/core: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (2 GB, a few minutes, once)"
	@$(PIP) -e .
	@touch $@

.venv/dev: .venv/core
	@$(PIP) -e ".[dev]"
	@touch $@

.venv/bench: .venv/dev
	@$(PIP) -e ".[bench]"
	@touch $@

.venv/docs: .venv/dev
	@$(PIP) -e ".[docs]"
	@touch $@

clean:
	rm -rf .venv site runs
