# The two commands of the README, and what developers run. Without make: the same commands stand in the README.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install compare test browser-test lint format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

compare: install
	$(BIN)/python -m benchmarks compare

test: install
	$(BIN)/python -m pytest

# Needs Chromium (Debian: apt-get install chromium); another browser's path goes into CHROMIUM.
browser-test: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	$(BIN)/python -m pytest -m browser tests/browser

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
