# make run    set up, then start onehop with a demo shop on loopback; Ctrl-C ends it
# make test   set up, then format check, lint, types, all tests

PYTHON ?= python3
VENV   := $(CURDIR)/.venv
BIN    := $(VENV)/bin

# Compiled kernels live with the project: compiled once, used by every process of every run.
export NUMBA_CACHE_DIR ?= $(CURDIR)/.cache/numba
export RAY_USAGE_STATS_ENABLED ?= 0
# Several onehops start at once in the tests, on few cores: none of them is to yield to the others.
test soak: export RAY_worker_niceness = 0
# No step may wait for an answer on a terminal.
export PIP_NO_INPUT = 1
export DEBIAN_FRONTEND = noninteractive

.PHONY: run test setup fmt check lock bench soak clean

run: setup $(VENV)/.compiled
	@exec $(BIN)/onehop up --demo $(ARGS)

test: setup
	@$(MAKE) --no-print-directory -j2 check $(VENV)/.compiled
	@command -v strace >/dev/null || { apt-get update -q && apt-get install -q -y strace; } || true
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(VENV)/.installed

# The stamp is written last, so that a broken installation is repeated.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"onehop needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; name another with make PYTHON=...")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "installing python3-venv"; \
	    apt-get update -q && apt-get install -q -y python3-venv && $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# Once here, or every shard would compile the same kernels at the first start, for half a minute;
# bytecode too, which a machine may forbid to be written in passing.
$(VENV)/.compiled: $(VENV)/.installed $(shell grep -lr --include=*.py njit actors)
	@echo "compiling kernels"
	@$(BIN)/python -m compileall -q cluster actors serve
	@$(BIN)/python -m actors.warm_up
	@touch $@

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m tests.readme_tables

# Random faults under load for half an hour, on a onehop of its own; histories of failures are kept.
soak: setup $(VENV)/.compiled
	@command -v strace >/dev/null || { apt-get update -q && apt-get install -q -y strace; }
	$(BIN)/python -m tests.soak --minutes 30 $(ARGS)

# The peers that the benchmarks run beside. Results are written next to each program.
bench: setup
	@command -v redis-server wrk >/dev/null || { apt-get update -q && apt-get install -q -y redis-server wrk; }
	$(BIN)/python -m tests.bench.hop --json tests/bench/hop.json
	$(BIN)/python -m tests.bench.memory --json tests/bench/memory.json
	$(BIN)/python -m tests.bench.warm_start --json tests/bench/warm_start.json
	$(BIN)/python -m tests.bench.elastic --json tests/bench/elastic.json
	$(BIN)/python -m tests.bench.plan --json tests/bench/plan.json
	$(BIN)/python -m tests.bench.capacity --json tests/bench/capacity.json

# Needs uv. The lock names versions and hashes, and no place to fetch them from.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-header -o requirements.lock
	uv pip compile pyproject.toml --extra image --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-header -c requirements.lock -o deploy/requirements.lock

clean:
	rm -rf .venv .cache build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
