# Two commands for newcomers: `make demo` and `make test`. Both make their own .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Workers of the test run; the property tests are what takes the time.
JOBS ?= 2

.PHONY: demo test lint bench gpu mutants clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip
	@# torch first, so that nothing that depends on it picks another build
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## simulate a CGOPipe run, really run it, and show how far the two are apart
	$(PY) -m exec demo -o out/demo

test: $(VENV)/.installed  ## the whole test suite
	$(PY) -m pytest -n $(JOBS) --dist loadgroup

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(VENV)/.installed
	$(PY) -m sim bench
	$(PY) benchmarks/decode_vs_transformers.py

gpu: $(VENV)/.installed  ## on a machine with an NVIDIA GPU: its tests, benches, calibration and validation, in ten minutes
	$(PY) benchmarks/gpu.py

mutants: $(VENV)/.installed
	$(PY) benchmarks/mutants.py

clean:
	rm -rf $(VENV) out
