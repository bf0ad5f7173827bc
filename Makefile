# Everything a checkout needs, on a machine with python3 and make. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

UV_VERSION := 0.13.9
UV := $(or $(shell command -v uv),.venv-tools/bin/uv)
BIN := .venv/bin
NODE := tests/interop/node examples/typescript_producer
NODE_READY := $(NODE:%=%/node_modules/.package-lock.json)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/.ready ## Install everything into .venv

.venv/.ready: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --quiet --locked --all-extras
	@touch $@

.venv-tools/bin/uv:
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This python3 cannot make virtual environments. On Debian and Ubuntu:" >&2; \
	  echo "  apt-get install -y python3-venv" >&2; exit 1; }
	@python3 -m venv .venv-tools
	@.venv-tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# Node is for the interop tests and one example. A laptop without it skips them; CI does not.
.PHONY: node
node: ## Install the packages of the tests that need Node
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(NODE_READY); \
	elif [ "$${CI:-}" = true ]; then echo "CI needs Node: apt-get install -y nodejs npm" >&2; exit 1; \
	else echo "No Node here: the tests that need it will be skipped."; fi

%/node_modules/.package-lock.json: %/package.json %/package-lock.json
	@npm ci --prefix $* --no-audit --no-fund --loglevel=error
	@touch $@

.PHONY: demo
demo: setup ## Run real agent jobs through embedded engines, then leave nothing running
	@$(BIN)/oxherd demo

.PHONY: test
test: setup node ## Run the tests, against real engines
	@$(BIN)/pytest -n auto --maxprocesses=4 --dist worksteal

.PHONY: check
check: setup ## Check format, lint, types, import layers and generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/docs.py --check
	$(UV) lock --check

.PHONY: audit
audit: setup ## Look for secrets in all of the history
	@$(BIN)/oxherd audit secrets

.PHONY: fix
fix: setup ## Format, and repair what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs
docs: setup ## Generate the pages made from code
	$(BIN)/python scripts/docs.py

.PHONY: bench
bench: setup ## Measure against other workers (25 minutes; bench/README.md)
	$(BIN)/python bench/run.py $(ARGS)

.PHONY: soak
soak: setup ## Ten minutes of jobs under random faults, then an exact ledger
	$(BIN)/python -m bench.soak.run --minutes 10 $(ARGS)

.PHONY: kills
kills: setup ## Kill workers 200 times amid agents' calls, then compare the ledger with the bill
	$(BIN)/python -m bench.kills.run $(ARGS)
