# `make` lists the targets. The environment lives in .venv and is rebuilt when its two inputs change.

PYTHON ?= python3
BIN := .venv/bin
# Tests run in that many processes: one keeps no two cores busy, and each takes up to 3 GB.
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv lint test test-slow test-hub docs demo bench clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: .venv/.installed ## create .venv and install the package with its test tools

# torch comes first, so that the build found for it (CPU or CUDA) is settled before anything asks for it.
.venv/.installed: pyproject.toml constraints.txt
	@echo "venv: installing into .venv (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) -e '.[test]'
	@touch $@

lint: venv ## style, types and the floors of the house
	@echo "lint: ruff check";  $(BIN)/ruff check --quiet .
	@echo "lint: ruff format"; $(BIN)/ruff format --quiet --check .
	@echo "lint: mypy";        $(BIN)/mypy --no-error-summary
	@echo "lint: imports";     report=$$($(BIN)/lint-imports --no-logo) || { echo "$$report"; exit 1; }

test: lint ## lint, then every test that is neither slow nor online
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not hub"

test-slow: venv ## the longer proofs
	@$(BIN)/python -m pytest -q -m "slow and not hub"

test-hub: venv ## published weights, from the Hugging Face hub
	@$(BIN)/python -m pytest -q -m hub

docs: venv ## build the documentation's site into out/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: out/site/index.html"

demo: venv ## train on drawn shapes and write pictures to out/
	@$(BIN)/tfdetr demo --out out

bench: venv ## run every benchmark and put the figures into benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/summary.py

clean: ## remove what the other targets wrote, except .venv
	@rm -rf build dist out .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
