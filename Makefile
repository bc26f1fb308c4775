# SPDX-License-Identifier: MIT
.DEFAULT_GOAL := help
.PHONY: help setup test lint clean
PYTEST_WORKERS ?= 4

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: ## install what is missing into .venv
	@bash scripts/setup.sh

test: setup ## run the whole suite
	@.venv/bin/python -m pytest -q -n $(PYTEST_WORKERS)

lint: setup ## check style, format and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

clean: ## remove what setup and the tests made
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
