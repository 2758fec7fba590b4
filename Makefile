# make train   a residual network, trained to the end on real images
# make test    the tests that take seconds; make test-slow, those that take minutes
# make parity  torch, torchvision, timm, LiteRT and dp-accounting, with which make test compares as well (torch is large)
# make check   lint, format and types
# make test-lowest  the main tests with the oldest dependencies that pyproject.toml admits, in .venv-lowest
# make docs    the site, in docs/_build/html; a dead link or a name that is not documented is an error
# make dist    wheel and source distribution, checked as the package index does
# make try-wheel  the wheel in empty environments, by pip and by uv
# Each makes .venv and installs what it needs. `make train PYTHON=python3.12` chooses the interpreter.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(p) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(p))))

.PHONY: train test test-slow test-lowest parity check docs dist try-wheel install clean

train: $(VENV)/.installed
	$(PY) -m resnet_jax train

test: $(VENV)/.installed-test
	$(PY) -m pytest -n auto --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed-test
	RESNET_JAX_OPTIMIZE=1 $(PY) -m pytest -n auto --dist loadfile -m slow

# LiteRT as docs/export.md installs it; where there are no such wheels, its tests are left out
LITERT := litert-converter ai-edge-litert litert-quantizer flatbuffers protobuf tqdm lark backports.strenum
# For private training: its upper bound on attrs is older than what others want
PRIVACY := dp-accounting mpmath
parity: $(VENV)/.installed-test
	@$(PIP) -e '.[test,parity]'
	-@$(PIP) --no-deps $(LITERT)
	-@$(PIP) --no-deps $(PRIVACY)

check: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

LOWEST := .venv-lowest
test-lowest: $(VENV)/.installed-test
	@$(PIP) uv
	$(VENV)/bin/uv venv --quiet --clear $(LOWEST)
	$(VENV)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[test]'
	$(LOWEST)/bin/python -m pytest -n auto --dist loadfile -m "not slow" tests/models tests/recipe tests/training tests/cli

docs: $(VENV)/.installed
	@$(PIP) -e '.[docs]'
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html

dist: $(VENV)/.installed-test
	@$(PIP) -e '.[release]'
	rm -rf dist
	$(PY) -m build
	$(PY) -m twine check --strict dist/*

WHEEL := .venv-wheel
TRY := bin/python -c 'import resnet_jax; print(resnet_jax.__version__, resnet_jax.MODELS["resnet50"].num_classes)'
try-wheel: dist
	rm -rf $(WHEEL)
	$(PY) -m venv $(WHEEL)/pip
	$(WHEEL)/pip/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd $(WHEEL)/pip && $(TRY) && bin/resnet-jax train --steps 2 --out run
	$(VENV)/bin/uv venv --quiet --python $(PY) $(WHEEL)/uv
	$(VENV)/bin/uv pip install --quiet --python $(WHEEL)/uv/bin/python dist/*.whl
	cd $(WHEEL)/uv && $(TRY) && bin/resnet-jax train --steps 2 --out run

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
	rm -rf $(VENV) $(LOWEST) $(WHEEL) dist docs/_build docs/generated docs/experiments .mypy_cache .pytest_cache .ruff_cache .hypothesis
