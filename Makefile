# Every target sets up .venv first when it has to; nothing is installed by hand.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-serial test-parallel-2 test-parallel-3 docs lint format image-test hosts-test clean

# Overridable: make demo NP=4 ARGS="--sigma 0.5"
NP ?= 2
DEMO ?= two_layer_network
OUTPUT ?= results/$(DEMO)
ARGS ?=
PYTEST_ARGS ?=

# Never the mpirun on PATH: it may belong to another MPI than the one DOLFINx is linked with.
BIN := .venv/bin
MPIRUN := $(BIN)/mpirun
PYTEST := $(BIN)/python -m pytest
# A deadlock must not last for ever. In the foreground, so that Ctrl-C reaches the ranks too.
LIMIT := timeout --foreground --kill-after=10

# The ranks share the cores; a thread pool in each of them slows all of them down.
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

# In two processes: MPI has 2,048 communicators for the meshes that one of them keeps, and there are
# two cores. What the first one says is shown when the second one is through.
# What mirrors the package: tests of one file each.
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

# One job a file, for the same reason; those that make few meshes share one. Three ranks on two cores
# take turns, and a message costs milliseconds: they run only what two ranks do not decide.
TOGETHER := $(wildcard $(patsubst %,tests/parallel/test_%.py,bad_input case launch memory meshing output))
ALONE := $(filter-out $(TOGETHER),$(wildcard tests/parallel/test_*.py))

test-parallel-2 test-parallel-3: test-parallel-%: .venv/.ready
	@echo "== tests/parallel at $* ranks"
	@for files in "$(TOGETHER)" $(ALONE); do \
		$(LIMIT) 600 $(MPIRUN) -n $* $(PYTEST) -p no:cacheprovider $(PYTEST_ARGS) $$files \
		</dev/null $(say-if-stopped); done

# 124 is how `timeout` says that it had to stop the program, without a message.
say-if-stopped = || { status=$$?; [ $$status -ne 124 ] || echo "$@: stopped, took too long"; exit $$status; }

# -W: a warning stops it; -E: nothing is left over from the build before.
docs: .venv/.ready ## the documentation, docs/_build/index.html
	@$(LIMIT) 300 $(BIN)/python -m sphinx -W -E --keep-going -q docs docs/_build </dev/null $(say-if-stopped)
	@echo "Open docs/_build/index.html"

lint: .venv/.ready ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.ready ## put the code into the form `make lint` asks for
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

image-test: ## build the container image and try it (docker/image-test.sh)
	docker/image-test.sh $(ARGS)

hosts-test: .venv/.ready ## one MPI job on two hosts made of network namespaces (needs root)
	docker/hosts-test.sh $(ARGS)

clean: ## remove caches and build products; keeps .venv and results
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache build dist docs/_build
	find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs rm -rf
