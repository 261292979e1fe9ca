# overlace: `make demo` and `make test` need nothing installed beforehand (Debian 12, root).
SHELL := bash
.DEFAULT_GOAL := help
BIN := .venv/bin
PURE := $(wildcard tests/unit tests/sim)
REAL := $(wildcard tests/host tests/conformance)

.PHONY: help setup demo test windows check bench clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is needed; quick when it is there
	@bash scripts/setup

demo: setup ## a mixed swarm at work, on this machine (KEEP=1 leaves it up)
	@$(BIN)/overlace lab demo $(if $(KEEP),--keep)

test: setup ## every test but tests/windows: unit and sim in parallel, then host and conformance (root, real packets, real clients)
	@status=0; \
	$(BIN)/pytest -n 2 $(PURE) || status=1; \
	$(BIN)/pytest $(REAL) || status=1; \
	exit $$status

windows: setup ## the other tests, tests/windows: the Windows half under a Windows Python (Wine), which this installs
	@bash scripts/windows
	@$(BIN)/pytest tests/windows

check: ## lint, types, arrows, the fast tests: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 -m "not slow" $(PURE)

bench: setup ## figures side by side with peers, as ratios in one run
	@$(BIN)/python bench/run.py

clean: ## remove caches and built eBPF objects (`overlace lab down --all` removes labs)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist .venv/.overlace-*
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.o' -delete
