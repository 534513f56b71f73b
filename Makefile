# The two commands of the README, and what developers run. Without make: docs/install.md has the same commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install compare test ratio-test test-slow extras-test snapshots wheel-test browser-test docs lint format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

compare: install
	$(BIN)/python -m benchmarks compare

# A file's tests run in one process, so that what they share is made once; the longest files begin (tests/conftest.py).
test: install
	$(BIN)/python -m pytest -n auto --dist loadfile

# That the importance ratio is exactly 1 must not depend on the processor: its own instructions ran in `make test`; here
# are AVX2 alone, as on most laptops, and none at all. Each variable is one library's.
ratio-test: install
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 \
	    $(BIN)/python -m pytest -n auto --dist loadfile -m ratio
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n auto --dist loadfile -m ratio

# What takes minutes: runs killed at 30 moments and more, the disk full at every write.
test-slow: install
	$(BIN)/python -m pytest -m long

# What only the optional packages can show: W&B offline, a sweep on a local Ray instance, and text that rapidocr reads.
extras-test: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[wandb,ray,ocr]"
	$(BIN)/python -m pytest tests/robustness/test_logs.py tests/benchmarks/test_ray.py tests/gym/test_ocr.py

# Writes what the commands print now over the texts that the tests expect; read the diff.
snapshots: install
	UPDATE_SNAPSHOTS=1 $(BIN)/python -m pytest -q tests/benchmarks/test_help.py tests/benchmarks/test_mistakes.py

# The built wheel in a fresh environment and an empty directory, beside torchrl.
wheel-test: install
	$(BIN)/python tests/install/wheel.py

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest -m docs -n auto tests/test_docs.py

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

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
	rm -rf $(VENV) build dist site .cache *.egg-info .mypy_cache .pytest_cache .ruff_cache
