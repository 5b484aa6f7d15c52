.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 0

# Nothing calls outside, and two libraries with a thread pool each do not fight for the cores.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help install demo test test-servers test-fast fuzz chaos check clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Make .venv and install everything from constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[local,postgres,heic,gpu,ray,trackers,dev]"
	@touch $@

demo: install ## Learn the small world's dog: photos to report, in minutes
	$(BIN)/dreambooth run examples/small_world/config.yaml

# A process per core, each with a file at a time and one thread for the small tensors in it.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: export OMP_NUM_THREADS := 1
test: install ## Run every test but those of whole stacks of servers
	$(PYTEST) -m "not servers"

test-servers: export OMP_NUM_THREADS := 1
test-servers: install ## Run the tests of whole stacks of servers
	$(PYTEST) -m servers

test-fast: export OMP_NUM_THREADS := 1
test-fast: install ## Run the tests that take seconds
	$(PYTEST) -m "not slow and not servers"

fuzz: export OMP_NUM_THREADS := 1
fuzz: install ## Give every command bad input, and kill trainings and runs; SEED=... for other moments
	$(BIN)/python -m tests.fuzz --seed $(SEED) --out fuzz.json
	FUZZ_EXAMPLES=500 $(BIN)/python -m pytest --quiet tests/fuzz/test_properties.py
	$(BIN)/python -m tests.fuzz.kills --seed $(SEED) --out kills.json

chaos: export OMP_NUM_THREADS := 1
chaos: install ## Kill and disturb real servers under real runs, in at most 25 minutes: chaos.json
	$(BIN)/python -m tests.chaos

check: install ## Ruff, format, mypy, and the layer test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

clean: ## Forget all local state: stores, databases, checkpoints, reports
	rm -rf .dreambooth
