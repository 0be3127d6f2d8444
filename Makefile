# `make demo` and `make test` work from a fresh clone: they make the environment and fetch the data themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DATA := $(CURDIR)/.cache/data
RUNS := runs/demo
export MEGU_DATA_DIR := $(DATA)
MEGU := $(BIN)/megu

.DEFAULT_GOAL := help
.PHONY: help setup data demo test test-all bench lint format docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.done: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || (echo "Python 3.11 or 3.12 is needed: make PYTHON=…"; exit 2)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

setup: $(VENV)/.done ## the virtual environment with pinned packages

data: ## Fashion-MNIST, from Debian's package where there is apt; elsewhere megu asks the Hugging Face hub
	@tools/fetch_fashion_mnist.sh $(DATA)

demo: setup data ## train, forget "Shirt", retrain, compare; writes $(RUNS)/megu/report.html
	$(MEGU) train experiment=fashion_mnist_train run.dir=$(RUNS) run.name=original
	$(MEGU) train experiment=fashion_mnist_train exclude_forget=true run.dir=$(RUNS) run.name=retrained
	$(MEGU) unlearn experiment=fashion_mnist_random_label run.dir=$(RUNS) run.name=random_label \
		model.path=$(RUNS)/original/model evaluate.retrained=$(RUNS)/retrained/model
	$(MEGU) unlearn experiment=fashion_mnist_shirt run.dir=$(RUNS) run.name=megu \
		model.path=$(RUNS)/original/model evaluate.retrained=$(RUNS)/retrained/model \
		'report.compare=[$(RUNS)/random_label]'

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## ruff format and fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## lint, format and type checks, then all tests but the slow ones, in two processes
	$(BIN)/pytest -m "not slow and not perf" -n 2 --dist loadfile --no-loadscope-reorder

bench: setup ## speed against bare baselines: ratios, medians of several runs
	$(BIN)/pytest -m perf -s tests/perf

test-all: lint ## every test
	$(BIN)/pytest -m "not perf"

docs: setup ## the pages and figures that are made from the code
	$(BIN)/python tools/make_configuration.py
	$(BIN)/python tools/draw_how_it_works.py

clean: ## remove the environment, caches and demo results
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache $(RUNS)
