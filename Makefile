# make train   a residual network, trained to the end on real images
# make test    the tests that take seconds; make test-slow, those that take minutes
# make parity  torch, torchvision and timm, with which make test compares as well (torch is large)
# make check   lint, format and types
# Each makes .venv and installs what it needs. `make train PYTHON=python3.12` chooses the interpreter.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(p))))

.PHONY: train test test-slow parity check install clean

train: $(VENV)/.installed
	$(PY) -m resnet_jax train

test: $(VENV)/.installed-test
	$(PY) -m pytest -n auto --dist loadgroup -m "not slow"

test-slow: $(VENV)/.installed-test
	RESNET_JAX_OPTIMIZE=1 $(PY) -m pytest -n auto --dist loadgroup -m slow

parity: $(VENV)/.installed-test
	@$(PIP) -e '.[test,parity]'

check: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

install: $(VENV)/.installed

$(PY):
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml | $(PY)
	@echo "installing into $(VENV), 1.2 GB: half a minute to minutes, as the line allows"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(PY)
	@echo "installing into $(VENV), 1.3 GB: half a minute to minutes, as the line allows"
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
