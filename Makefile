# Two commands set themselves up: `make experiment` and `make test`.
PYTHON ?= python3
EXTRAS ?= vnet,dev
WORKERS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
# One thread a worker: workers that share the cores are faster than threads. A file stays with one worker, whose trained
# runs its tests share.
TEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup experiment test test-slow test-all lint types tensorboard clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## build .venv with pinned dependencies
	@echo "ready; activate it with: source $(VENV)/bin/activate    (then: vnet --help)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $(READY)

experiment: $(READY)  ## phantoms, training without and with refinement, comparison (about 5 minutes on 2 cores)
	$(VENV)/bin/vnet experiment --config configs/quickstart.yaml $(ARGS)

test: $(READY)  ## the tests that every change must pass, WORKERS at a time
	$(TEST) -m "not slow" $(ARGS)

test-slow: $(READY)  ## killed trainings, whole studies, more examples of the fuzz tests
	$(TEST) -m "slow or fuzz" --hypothesis-profile thorough $(ARGS)

test-all: test test-slow  ## every test

lint: $(READY)  ## style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY)  ## types
	$(RUN) -m mypy

tensorboard: $(READY)  ## curves and pictures of all runs, on this machine only (PORT=6007 chooses a port)
	$(VENV)/bin/vnet tensorboard runs $(if $(PORT),--port $(PORT)) $(ARGS)

clean:  ## remove .venv, phantoms and caches; runs stay
	rm -rf $(VENV) data/phantoms .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
