# Every target sets up by itself: virtual environment, pinned dependencies, then the job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# Tests and benchmarks read real data by path; where it is absent they skip and say so.
ifneq ($(wildcard ../shared/data),)
export FEDTWIN_DATA ?= $(abspath ../shared/data)
endif
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
# Threads of torch that spin while they wait starve each other where tests run side by side.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup demo test test-all lint format clean
help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | sort

setup: $(STAMP)  ## make the virtual environment with the pinned dependencies
$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("fedtwin needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "fedtwin: installing the pinned dependencies into $(VENV), a few minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint requirements.lock --editable '.[server,site,images,demo,dev]'
	touch $@

demo: setup  ## three hospitals train one generator on real data; ARGS=--exit ends by itself
	$(BIN)/fedtwin demo $(ARGS)

test: setup  ## the tests, under ten minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not slow' $(ARGS)

test-all: setup  ## the tests and the long ones
	$(BIN)/python -m pytest -n 2 --dist loadgroup --timeout=5400 $(ARGS)

lint: setup  ## style, types and walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## put the code into house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove what the targets made
	rm -rf $(VENV) demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
