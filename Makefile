# `make demo`: the main job. `make test`: everything CI checks. Both make the environment they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Threads that wait by spinning slow each other down many times over when cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE
export MLFLOW_DISABLE_TELEMETRY ?= true
# Where nothing is written, every process compiles torch and Lightning again: 20 seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test unit-and-e2e test-slow fuzz lint ui install clean

demo: install
	$(BIN)/mtp grid run experiments/001_head_count/grid.yaml

ui: install
	$(BIN)/mtp ui --experiment mtp/head-count

# Two processes, a file at a time (tests/conftest.py). `make -j2 test` lints meanwhile.
test: lint unit-and-e2e

unit-and-e2e: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

# Mutated input of every kind, SIGKILLs before each write of a run, then at random moments; `make fuzz SEED=7` for others. Up to 90 minutes.
SEED ?= 0
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --mutations 2000 --seconds 600 --seed $(SEED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/kills_at_writes.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/kills.py --kills 50 --seed $(SEED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

# torch goes first and alone, so that whatever build of it the index offers (CPU, CUDA) is settled before the rest.
# Modules are compiled when they are first imported: to compile all of them takes as long as the rest of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build
