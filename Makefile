# `make` lists the targets. Environments live in .venv, .venv-floors and .venv-newest, made when first needed and again
# when what they are made from changes.

PYTHON ?= python3
# What pyproject.toml's requires-python says; a test keeps the two alike.
SUPPORTED := 3.11 3.12 3.13
BIN := .venv/bin
# Tests run in that many processes: one keeps no two cores busy, and each takes up to 8 GB.
WORKERS ?= 2
# What is never imported need not be compiled, which takes as long as unpacking.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
PINNED := $(BIN)/python $(PIP) -c constraints.txt
# The tests that matter most, in two minutes: the matching's targets, model, data, training, every kind of `.keras` file,
# and what is published.
QUICK := tests/packaging tests/test_boxes.py tests/losses/test_targets.py tests/models/test_fit.py tests/test_loading.py \
	tests/models/test_quantization.py::test_a_file_gives_the_model_that_was_saved tests/data/test_coco.py \
	tests/data/test_voc.py tests/training/test_checkpoint.py
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Where much is compiled by XLA, a seventh of the time of tests is LLVM's optimizations, and what is compiled runs once or
# twice. The slow tests have them, as users do.
UNOPTIMIZED := XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

.DEFAULT_GOAL := help
.PHONY: help venv lint quick test test-slow test-hub test-floors test-newest test-pythons docs demo bench clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: .venv/.installed ## create .venv and install the package with all that tests, docs and benchmarks need

# torch comes first, so that the build found for it (CPU or CUDA) is settled before anything asks for it. torchvision, to
# compare with, lies beside the environment: transformers would use it, and cannot where it is built for another torch.
.venv/.installed: pyproject.toml constraints.txt
	@sh .ci/environment .venv $(PYTHON) $(SUPPORTED)
	@echo "venv: installing everything into .venv (5 to 10 GB, some minutes the first time)"
	@$(PINNED) torch
	@$(PINNED) -e '.[test]'
	@$(PINNED) --no-deps --upgrade --target .venv/beside torchvision || echo "venv: no torchvision; its tests are skipped"
	@touch .venv/.core .venv/.port $@

# What the demo needs, and no more. PyTorch is only compared with: where it cannot be had, the demo runs without it.
.venv/.core: pyproject.toml constraints.txt
	@sh .ci/environment .venv $(PYTHON) $(SUPPORTED)
	@echo "venv: installing the package into .venv (2 GB, a minute or two)"
	@$(PINNED) -e .
	@touch $@

.venv/.port: .venv/.core
	@echo "venv: installing PyTorch, to compare with (1 GB more, or 7 GB where pip finds the CUDA build)"
	@if $(PINNED) -e '.[port]' 2>.venv/port.log; then touch $@; \
	else echo "venv: no PyTorch to be had here (.venv/port.log says why); the demo leaves the comparison out"; fi

lint: venv ## style, types and the floors of the house
	@echo "lint: ruff check";  $(BIN)/ruff check --quiet .
	@echo "lint: ruff format"; $(BIN)/ruff format --quiet --check .
	@echo "lint: mypy";        $(BIN)/mypy --no-error-summary
	@echo "lint: imports";     report=$$($(BIN)/lint-imports --no-logo) || { echo "$$report"; exit 1; }

quick: lint ## lint and the tests that matter most, in two minutes
	@$(UNOPTIMIZED) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not hub" $(QUICK)

test: lint ## lint, then every test that is neither slow nor online
	@$(UNOPTIMIZED) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not hub"

test-slow: venv ## the longer proofs
	@$(BIN)/python -m pytest -q -m "slow and not hub"

test-hub: venv ## published weights, from the Hugging Face hub
	@$(BIN)/python -m pytest -q -m hub

test-floors: .venv-floors/.installed ## the quick tests with every dependency at its lower bound, on Python 3.11
	@.venv-floors/bin/python -m pytest -q -m "not slow and not hub" $(QUICK)

.venv-floors/.installed: pyproject.toml floors.txt
	@sh .ci/environment .venv-floors $(PYTHON) 3.11
	@echo "venv: installing the lower bounds into .venv-floors (5 to 10 GB, some minutes the first time)"
	@.venv-floors/bin/python $(PIP) -r floors.txt -e '.[test]'
	@touch $@

# Asks the index each time: what is newest today was not yesterday.
test-newest: ## the quick tests with the newest release of every dependency
	@sh .ci/environment .venv-newest $(PYTHON) $(SUPPORTED)
	@echo "venv: installing the newest of everything into .venv-newest (5 to 10 GB, some minutes the first time)"
	@.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager -e '.[test]'
	@.venv-newest/bin/python -m pytest -q -m "not slow and not hub" $(QUICK)

test-pythons: ## install, train, predict and export with each Python that is here, and say how much disk that takes
	@$(PYTHON) tests/packaging/every_python.py

docs: venv ## build the documentation's site into out/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: out/site/index.html"

demo: .venv/.port ## train on drawn shapes and write pictures to out/
	@$(BIN)/tfdetr demo --out out

bench: venv ## run every benchmark and put the figures into benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/summary.py

clean: ## remove what the other targets wrote, except the environments
	@rm -rf build dist out .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
