# SPDX-License-Identifier: MIT
.DEFAULT_GOAL := help
.PHONY: help setup run test demo bench chaos lint config dist install uninstall clean
PYTEST_WORKERS ?= 4

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: ## install what is missing into .venv
	@bash scripts/setup.sh

run: setup ## run the daemon in the foreground with etc/dev.toml (more by ARGS="--set ingest.port=9000")
	@POSTBACKD_RUN_BY='make run' exec .venv/bin/postbackd run -c etc/dev.toml $(ARGS)

demo: setup ## send the sample request to a daemon and show what arrives
	@.venv/bin/python -m postbackd.tools.demo

test: setup ## run the whole suite (needs promtool)
	@bash scripts/need.sh promtool:prometheus
	@.venv/bin/python -m pytest -q -n $(PYTEST_WORKERS)

lint: setup ## check style, format and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench: setup ## measure ingest, delivery and the one-request loop, briefly (needs wrk and nginx)
	@bash scripts/need.sh wrk:wrk nginx:nginx-light
	@.venv/bin/python -m bench.ingest --rounds 3 --seconds 2
	@.venv/bin/python -m bench.ingest --rounds 3 --seconds 2 --items 100
	@.venv/bin/python -m bench.loop --rounds 3 --seconds 2
	@.venv/bin/python -m bench.delivery --rounds 3
	@.venv/bin/python -m bench.isolation --seconds 5
	@.venv/bin/python -m bench.idle --seconds 10

chaos: setup ## fail everything at random for ten minutes under load, then audit every postback (CHAOS="--seed 7")
	@.venv/bin/python -m bench.chaos $(CHAOS)

config: setup ## write etc/postbackd.toml and docs/configuration.md anew from the settings' declarations
	@.venv/bin/postbackd config >etc/postbackd.toml
	@.venv/bin/python -m postbackd.tools.settings_doc >docs/configuration.md

dist: setup ## build wheel, sdist and the lock of what they need into dist/
	@rm -rf dist build
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)} \
	    .venv/bin/python -m build --no-isolation --outdir dist . >dist.log 2>&1 || { cat dist.log; exit 1; }
	@.venv/bin/python scripts/runtime_lock.py >dist/requirements.lock
	@rm -rf dist.log build *.egg-info
	@ls -l dist

install: ## install what make dist built (root, or DESTDIR=DIR); keeps an edited configuration
	@[ -e dist/requirements.lock ] || $(MAKE) --no-print-directory dist
	@bash scripts/install.sh install

uninstall: ## remove it again; PURGE=1 removes configuration, queue and logs too
	@bash scripts/install.sh uninstall

clean: ## remove what setup and the tests made
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
