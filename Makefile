# make train   a residual network, trained to the end on real images
# make test    the tests
# make check   lint, format and types
# Each makes .venv and installs what it needs. `make train PYTHON=python3.12` chooses the interpreter.

VENV := .venv
BIN := $(VENV)/bin
FINDS := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) -c '$(FINDS)' 2>/dev/null && echo $(p))))

.PHONY: train test test-all check install clean

train: $(VENV)/.installed
	$(BIN)/resnet-jax train

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
