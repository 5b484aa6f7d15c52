.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 0

# No telemetry.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help install demo test test-servers test-fast fuzz chaos check clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Create .venv and install everything from constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[local,postgres,heic,gpu,video,documents,ray,trackers,dev]"
	@touch $@

# The small vision-language model, as a judge that only advises.
VISION_OPTIONS := $(if $(VISION),--set vision.backend=local_transformers --set vision.model=examples/small_world/glm \
	--set vision.max_tokens=128 --set 'evaluation.judge={at_once: 1}')

demo: install ## Train on the small world's dog, from photos to report, in minutes; VISION=1: with a judge
	$(BIN)/dreambooth run examples/small_world/config.yaml $(VISION_OPTIONS)

# One process per core, each with one file at a time and one thread.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: export OMP_NUM_THREADS := 1
test: install ## Run all tests except those that need a stack of servers
	$(PYTEST) -m "not servers"

test-servers: export OMP_NUM_THREADS := 1
test-servers: install ## Run the tests that need a stack of servers
	$(PYTEST) -m servers

test-fast: export OMP_NUM_THREADS := 1
test-fast: install ## Run the tests that take seconds
	$(PYTEST) -m "not slow and not servers"

fuzz: export OMP_NUM_THREADS := 1
fuzz: install ## Run every command on bad inputs, and kill trainings and runs; SEED=... for other moments
	$(BIN)/python -m tests.fuzz --seed $(SEED) --out fuzz.json
	FUZZ_EXAMPLES=500 $(BIN)/python -m pytest --quiet tests/fuzz/test_properties.py
	$(BIN)/python -m tests.fuzz.kills --seed $(SEED) --out kills.json

chaos: export OMP_NUM_THREADS := 1
chaos: install ## Kill and disturb real servers during real runs, at most 25 minutes: chaos.json
	$(BIN)/python -m tests.chaos

check: install ## Ruff, format, mypy, and the layer test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

clean: ## Delete all local state: stores, databases, checkpoints, reports
	rm -rf .dreambooth
