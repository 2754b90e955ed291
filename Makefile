# Two commands on a fresh machine: `make demo` and `make test`. The rest is for daily work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1
export DS_BUILD_OPS := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test exact bench fusion check format ui clean

help:  ## What there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(VENV)/.ready  ## The virtual environment with the pinned packages

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV) (once; a few minutes)"
	@# torch first and alone: a looser request would bring in gigabytes of CUDA, and deepspeed is built against it
	@$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt torch==2.13.0 numpy setuptools wheel
	@$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[train,dagster,demo,dev]'
	@touch $@

demo: setup  ## The main job, end to end on real data: bucket to checkpoint
	@$(BIN)/k25 demo

test: setup  ## Every test but the long matrices
	@$(BIN)/pytest -q -m "not exact"

exact: setup  ## The long matrices: ranks x threads x kills
	@$(BIN)/pytest -q -m exact

bench: setup  ## Speed as ratios, against a peer in the same run; results are kept in benchmarks/results
	@for name in planner traffic opening pixels plumbing; do $(BIN)/python -m benchmarks.$$name || exit 1; done

fusion: setup  ## Early, mid and late fusion on the lake of `make demo`; about a quarter of an hour on two cores
	@$(BIN)/k25 up --background > /dev/null && . .k25/env && $(BIN)/python -m benchmarks.fusion

check: setup  ## Lint, format, types
	@$(BIN)/ruff check --no-cache . && $(BIN)/ruff format --check . && $(BIN)/basedpyright

format: setup  ## Put the code in its form
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

ui: setup  ## The Dagster web page on http://127.0.0.1:3000
	@$(BIN)/k25 ui

clean:  ## Stop the embedded server and remove what runs wrote (not the environment)
	@test ! -x $(BIN)/k25 || $(BIN)/k25 down
	@rm -rf .k25
