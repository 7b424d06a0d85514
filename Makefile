# Every target sets up .venv first if necessary; nothing is installed by hand.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-serial test-parallel-2 test-parallel-3 docs lint format image-test hosts-test clean

# Overridable: make demo NP=4 ARGS="--sigma 0.5"
NP ?= 2
DEMO ?= two_layer_network
OUTPUT ?= results/$(DEMO)
ARGS ?=
PYTEST_ARGS ?=

# Do not use the mpirun on PATH: it may belong to an MPI other than the one DOLFINx is linked with.
BIN := .venv/bin
MPIRUN := $(BIN)/mpirun
PYTEST := $(BIN)/python -m pytest
# Stop deadlocked runs. --foreground: Ctrl-C reaches the ranks too.
LIMIT := timeout --foreground --kill-after=10

# The ranks share the cores; thread pools in them would slow all of them down.
export OMP_NUM_THREADS := 1

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/.ready: pyproject.toml setup.sh
	@./setup.sh

setup: .venv/.ready ## make .venv (PYTHON=/path/to/python3.12 chooses the interpreter)
	@:

demo: .venv/.ready ## run a demo: DEMO=two_layer_network NP=2 OUTPUT=results/... ARGS="..."
	@test -f demos/$(DEMO).py || { echo "no demos/$(DEMO).py; there are:"; ls demos/*.py; exit 2; }
	$(MPIRUN) -n $(NP) $(BIN)/python demos/$(DEMO).py --output $(OUTPUT) --overwrite $(ARGS) </dev/null
	@find $(OUTPUT) -name '*.png' | sort | sed 's/^/Picture: /' | grep . || echo "Results: $(OUTPUT)"

test: test-serial test-parallel-2 test-parallel-3 ## all tests: serial, then tests/parallel at 2 and 3 ranks

# Two processes run the tests: MPI has 2,048 communicators for the meshes that one process keeps, and there
# are two cores. The output of the first is shown when the second has finished.
# MIRROR: the tests that mirror the files of the package.
MIRROR := $(wildcard tests/test_*.py) $(addprefix tests/,functionals mean_field stationary flows output plotting)

test-serial: .venv/.ready
	@echo "== tests at 1 rank"
	@mkdir -p .cache; \
	$(LIMIT) 900 $(PYTEST) $(PYTEST_ARGS) $(MIRROR) </dev/null >.cache/unit.log 2>&1 & unit=$$!; \
	trap "kill $$unit 2>/dev/null" EXIT; status=0; \
	$(LIMIT) 900 $(PYTEST) $(PYTEST_ARGS) -p no:cacheprovider \
		tests/convergence tests/demos tests/parallel </dev/null || status=$$?; \
	wait $$unit || status=$$?; cat .cache/unit.log; \
	[ $$status -ne 124 ] || echo "$@: stopped, took too long"; exit $$status

# One job per file, for the same reason; tests with few meshes share one. Three ranks on two cores
# take turns, and a message costs milliseconds: they run only tests for which two ranks are not enough.
TOGETHER := $(wildcard $(patsubst %,tests/parallel/test_%.py,bad_input case launch memory meshing output))
ALONE := $(filter-out $(TOGETHER),$(wildcard tests/parallel/test_*.py))

test-parallel-2 test-parallel-3: test-parallel-%: .venv/.ready
	@echo "== tests/parallel at $* ranks"
	@for files in "$(TOGETHER)" $(ALONE); do \
		$(LIMIT) 600 $(MPIRUN) -n $* $(PYTEST) -p no:cacheprovider $(PYTEST_ARGS) $$files \
		</dev/null $(say-if-stopped); done

# `timeout` exits with 124, without a message, if it stopped the program.
say-if-stopped = || { status=$$?; [ $$status -ne 124 ] || echo "$@: stopped, took too long"; exit $$status; }

# -W: warnings are errors; -E: nothing is reused from the previous build.
docs: .venv/.ready ## the documentation, docs/_build/index.html
	@$(LIMIT) 300 $(BIN)/python -m sphinx -W -E --keep-going -q docs docs/_build </dev/null $(say-if-stopped)
	@echo "Open docs/_build/index.html"

lint: .venv/.ready ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.ready ## format the code as `make lint` requires
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

image-test: ## build and test the container image (docker/image-test.sh)
	docker/image-test.sh $(ARGS)

hosts-test: .venv/.ready ## one MPI job on two hosts made of network namespaces (needs root)
	docker/hosts-test.sh $(ARGS)

clean: ## remove caches and build products; keeps .venv and results
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache build dist docs/_build
	find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs rm -rf
