# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
JOBS ?= 2

.PHONY: demo test suite test-all test-gpu lint install clean

# torch first and by its pinned version: a bare `torch` pulls several GB of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/cl-adapter demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Side by side: the checks use one core, and tests wait for processes now and then.
test: install
	$(MAKE) --no-print-directory -j 2 lint suite

# Tests start many processes: without compiled modules each of them would compile the project again.
suite: install
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q -n $(JOBS) --dist worksteal

test-all: lint
	ADAPTERHUB_TEST_EXAMPLES=all $(BIN)/pytest -q -n $(JOBS) --dist worksteal -m 'not gpu'

# On a machine with an NVIDIA GPU; elsewhere every test skips and says why. `-n 0`: tests share the one card.
test-gpu: install
	$(BIN)/pytest -q -n 0 -m gpu

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
