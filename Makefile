# make demo    compare norms on the embedded data; opens nothing, prints where the report is
# make test    the test suite;  make test-slow  the long tests too
#
# Everything is installed into .venv at the first call. CPU=1 takes torch without its GPU parts
# (Linux, needs internet); PYTHON=… names the Python to use; VENV=none uses it as it is.

VENV ?= .venv
PYTHON ?=
CPU ?=
# a process per core, at most four, which share the test files between them; PARALLEL= is one
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile
INPUTS = pyproject.toml constraints.txt scripts/setup.sh

ifeq ($(VENV),none)
RUN = PYTHONPATH="$(CURDIR)" $(or $(PYTHON),python3)
else
RUN = $(VENV)/bin/python
LAB = $(VENV)/.lab
DEV = $(VENV)/.dev
endif

.PHONY: demo test test-slow lint format clean

demo: $(LAB)
	$(RUN) -m normlab.cli compare

test: $(DEV)
	$(RUN) -m pytest $(PARALLEL)

test-slow: $(DEV)
	$(RUN) -m pytest $(PARALLEL) -m "slow or not slow"

lint: $(DEV)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(DEV)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# the stamps are written last, so an interrupted installation is taken up again
$(VENV)/.lab: $(INPUTS)
	VENV="$(VENV)" PYTHON="$(PYTHON)" CPU="$(CPU)" sh scripts/setup.sh lab
	touch $@

$(VENV)/.dev: $(INPUTS)
	VENV="$(VENV)" PYTHON="$(PYTHON)" CPU="$(CPU)" sh scripts/setup.sh dev
	touch $@ $(VENV)/.lab

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
