# Development commands; `make` lists them.

PYTHON ?= python3
VENV ?= .venv
FUZZ_SECONDS ?= 240
FEATURE ?= users
CLIENTS := tests/clients
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet

# coverage reports lines and branches as one figure; the requirement is for branches.
define BRANCHES
import json, sys
totals = json.load(open(".coverage.json"))["totals"]
percent = 100 * totals["covered_branches"] / totals["num_branches"]
print(f"branches covered: {percent:.2f} % of {totals['num_branches']}")
sys.exit(percent < 95 and "at least 95 % of branches must be covered")
endef
export BRANCHES

# Container images set this, but each test process would compile the service and the tests again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow faults faults-quick check coverage branches fuzz clients mutants lint format migrate bench bench-scale ha failover audit sbom lock clean

help: ## List these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

serve: $(VENV)/serve.stamp ## Run the service on its embedded PostgreSQL: PORT, HOST, DATA_DIR
	@exec $(BIN)/shinkei serve

# COVERAGE=yes accumulates coverage over several groups of tests: see coverage.
PYTEST = $(BIN)/pytest $(if $(COVERAGE),--cov --cov-append --cov-report=)

test: $(VENV)/dev.stamp ## Run the quick tests on an embedded PostgreSQL, or on DATABASE_URL
	@$(PYTEST) -m "not slow and not fault"

test-slow: $(VENV)/dev.stamp ## Run the slow tests, and the properties with more examples
	@$(PYTEST) -m "(slow or property) and not fault" --hypothesis-profile thorough

faults: $(VENV)/dev.stamp ## Have everything fail under load, and write docs/reliability.json: ONLY
	@rm -f .faults.jsonl
	@FAULTS_REPORT=.faults.jsonl $(BIN)/pytest -n 2 -m fault tests/faults $(if $(ONLY),-k '$(ONLY)')
	@$(if $(ONLY),,$(BIN)/python -m tests.faults.mixed --report .faults.jsonl)
	@$(if $(ONLY),,$(BIN)/python -m tools.reliability .faults.jsonl)

faults-quick: $(VENV)/dev.stamp ## Have a few things fail, as CI does
	@$(BIN)/pytest -n 4 -m quick_fault tests/faults

check: lint ## Lint, and run the quick tests of one folder of tests/: FEATURE=sessions
	@$(BIN)/pytest -q -m "not slow and not fault" tests/$(FEATURE)

coverage: $(VENV)/dev.stamp ## Run both groups and require 95 % of branches to be covered
	@rm -f .coverage .coverage.*
	@$(MAKE) --no-print-directory COVERAGE=yes test test-slow branches

branches: # Report the coverage of both groups
	@$(BIN)/coverage report
	@$(BIN)/coverage json --quiet -o .coverage.json
	@$(BIN)/python -c "$$BRANCHES"

fuzz: $(VENV)/dev.stamp .venv-fuzz/stamp ## Fuzz the API with schemathesis, for FUZZ_SECONDS=240 or more
	@$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

clients: $(VENV)/dev.stamp .venv-clients/stamp ## Generate clients from the API's description, and call the service with them: ONLY
	@$(BIN)/python -m tests.clients.run $(if $(ONLY),--only '$(ONLY)')

mutants: $(VENV)/dev.stamp .venv-mutants/stamp ## Check that tests catch a removed guard, and a sample of other mutants: ONLY, MUTANTS
	@$(BIN)/python -m tests.mutants.run $(if $(ONLY),--only '$(ONLY)') $(MUTANTS)

lint: $(VENV)/dev.stamp ## Check style, types and the direction of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/dev.stamp ## Format the code
	@$(BIN)/ruff check --fix --exit-zero --quiet
	@$(BIN)/ruff format

migrate: $(VENV)/serve.stamp ## Apply pending migrations
	@exec $(BIN)/shinkei migrate

bench: $(VENV)/serve.stamp .venv-bench/stamp ## Compare requests with other stacks: ROUNDS, SECONDS, ONLY
	@exec $(BIN)/python -m benchmarks.run

bench-scale: $(VENV)/serve.stamp ## Measure lists of a million accounts, a sign-in flood, idling, and a soak
	@exec $(BIN)/python -m benchmarks.scale

ha: $(VENV)/serve.stamp ## Run three database nodes with Patroni, and two replicas of the service
	@exec $(BIN)/python -m deploy.ha.cluster

failover: $(VENV)/serve.stamp ## Kill the primary's node under load, and measure until writes succeed: CASES, RUNS
	@exec $(BIN)/python -m benchmarks.failover

audit: .venv-audit/stamp ## Look for known vulnerabilities in the pinned dependencies
	@.venv-audit/bin/python -m tools.audit

# What deploy/Dockerfile installs, and writes into the image.
sbom: .venv-sbom/stamp ## Write a bill of materials (CycloneDX) of what the image installs: build/sbom.cdx.json
	@.venv-sbom/bin/python -m tools.sbom build/sbom.cdx.json

clean: ## Remove virtual environments and caches, but no data
	@rm -rf .venv .venv-* .mutants benchmarks/peers/fastify/node_modules
	@rm -rf $(CLIENTS)/node_modules $(CLIENTS)/.generated
	@rm -rf .coverage* .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info

$(BIN)/pip:
	@echo "Setting up $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)

# pip checks the hash of each package. The second command only links the checkout.
INSTALL = $(PIP) --requirement $(1) && $(PIP) --no-deps --no-build-isolation --editable .

$(VENV)/serve.stamp: setup.cfg pyproject.toml requirements/serve.txt | $(BIN)/pip
	@$(call INSTALL,requirements/serve.txt)
	@touch $@

$(VENV)/dev.stamp: setup.cfg pyproject.toml requirements/dev.txt | $(BIN)/pip
	@$(call INSTALL,requirements/dev.txt)
	@touch $@ $(VENV)/serve.stamp

COMPILE = .venv-lock/bin/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 \
  --generate-hashes --no-strip-extras --no-annotate --custom-compile-command "make lock" --group build pyproject.toml

lock: .venv-lock/stamp ## Pin the dependencies, with hashes, in requirements/: UPGRADE=--upgrade
	@$(COMPILE) --output-file requirements/service.txt
	@$(COMPILE) --output-file requirements/serve.txt --constraint requirements/service.txt --extra embedded
	@$(COMPILE) --output-file requirements/dev.txt --constraint requirements/serve.txt --extra embedded --extra dev

.venv-lock/stamp:
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install --disable-pip-version-check --quiet uv==0.13.9
	@touch $@

PEERS := benchmarks/peers/fastify
.venv-bench/stamp: benchmarks/requirements.txt $(wildcard $(PEERS)/package*.json)
	@echo "Setting up .venv-bench (once)"
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@if command -v npm >/dev/null; then npm ci --prefix $(PEERS) --omit=dev --no-audit --no-fund --silent; fi
	@touch $@

# A separate environment keeps schemathesis's dependencies away from the service and its tests.
.venv-fuzz/stamp: tests/fuzz/requirements.txt
	@$(PYTHON) -m venv .venv-fuzz
	@.venv-fuzz/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

# Likewise for generators of clients. npm brings a newer Node.js than some systems have.
.venv-clients/stamp: $(CLIENTS)/requirements.txt $(wildcard $(CLIENTS)/package*.json)
	@command -v npm >/dev/null || { echo "npm is needed" >&2; exit 1; }
	@echo "Setting up .venv-clients (once)"
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@npm ci --prefix $(CLIENTS) --ignore-scripts --no-audit --no-fund --loglevel=error --silent
	@touch $@

# Likewise for cosmic-ray.
.venv-mutants/stamp: tests/mutants/requirements.txt
	@$(PYTHON) -m venv .venv-mutants
	@.venv-mutants/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

# Likewise for pip-audit.
.venv-audit/stamp: tools/audit-requirements.txt
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

.venv-sbom/stamp: setup.cfg pyproject.toml requirements/service.txt
	@$(PYTHON) -m venv --clear .venv-sbom
	@.venv-sbom/bin/pip install --disable-pip-version-check --quiet --requirement requirements/service.txt
	@.venv-sbom/bin/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation .
	@.venv-sbom/bin/pip uninstall --quiet --yes setuptools
	@touch $@
