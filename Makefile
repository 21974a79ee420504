# Two commands set themselves up: `make experiment` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup experiment test lint types tensorboard clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## build .venv with pinned dependencies
	@echo "ready; activate it with: source $(VENV)/bin/activate    (then: vnet --help)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[vnet,dev]'
	@touch $(READY)

experiment: $(READY)  ## phantoms, training without and with refinement, comparison (about 5 minutes on 2 cores)
	$(VENV)/bin/vnet experiment --config configs/quickstart.yaml $(ARGS)

test: $(READY)  ## the tests
	$(RUN) -m pytest $(ARGS)

lint: $(READY)  ## style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY)  ## types
	$(RUN) -m mypy

tensorboard: $(READY)  ## curves and pictures of all runs, on this machine only
	$(VENV)/bin/tensorboard --logdir runs --host localhost $(ARGS)

clean:  ## remove .venv, phantoms and caches; runs stay
	rm -rf $(VENV) data/phantoms .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
