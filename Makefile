# What a person types; `make` alone lists it. Everything runs in .venv, which `setup` makes.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test bench chaos lint wasm servers clean

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.dev ## make .venv with everything that development needs

demo: $(VENV)/.runtime ## a year of temperatures through a real engine, checked; needs no account
	@$(BIN)/python examples/demo.py

serve: $(VENV)/.runtime ## run an engine on http://127.0.0.1:8700, data in ./cloudcode-data
	@exec $(BIN)/python -P -m engine serve --data-dir cloudcode-data

test: $(VENV)/.dev wasm servers ## lint, format, types, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not alone" -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -q -m alone

bench: $(VENV)/.dev ## measure this machine
	@$(BIN)/python benchmarks/run.py

chaos: $(VENV)/.dev servers ## kill and pause nodes, servers and cells for minutes, and count
	@$(BIN)/python benchmarks/chaos.py

lint: $(VENV)/.dev ## repair what ruff can, then types
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/mypy

# For the examples and the tests of WebAssembly functions; neither the engine nor the demo needs them.
wasm: | $(BIN)/python ## install compilers of WebAssembly: clang, Rust, AssemblyScript
	@examples/wasm/install-compilers.sh $(VENV)

# For tests of many nodes; one that is installed already stays as it is. The distribution would start
# its own servers: nobody needs them, and the tests start theirs.
servers: ## install PostgreSQL and Redis, which tests start and stop
	@missing=()
	{ command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; } >/dev/null 2>&1 || missing+=(postgresql)
	command -v redis-server >/dev/null || missing+=(redis-server)
	[ "$${#missing[@]}" -gt 0 ] || exit 0
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "note: tests that need $${missing[*]} are left out; on Debian and Ubuntu: sudo apt-get install $${missing[*]}" >&2
		exit 0
	fi
	echo "installing $${missing[*]} ..." >&2
	policy=/usr/sbin/policy-rc.d # who has one has decided already whether services start
	if [ ! -e "$$policy" ]; then
		trap 'rm -f "$$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$$policy"
		chmod +x "$$policy"
	fi
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$${missing[@]}" >/dev/null; } ||
		echo "note: $${missing[*]} could not be installed; tests that need it are left out" >&2

clean: ## remove caches; .venv and cloudcode-data stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist benchmarks/results *.egg-info
	rm -rf examples/wasm/build
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Two stamps, so that a demo does not wait for test tools. Each is renewed when pyproject.toml is.
$(VENV)/.runtime: pyproject.toml | libseccomp
	@echo "installing the engine into $(VENV) ..." >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: pyproject.toml | libseccomp
	@echo "installing the engine and its test tools into $(VENV) ..." >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.runtime

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || {
		echo "no $(PYTHON) found: install Python 3.11 or later, or name one: make PYTHON=python3.12" >&2
		exit 1
	}
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
		echo "$$($(PYTHON) --version) is too old: Python 3.11 or later is needed; name one: make PYTHON=python3.12" >&2
		exit 1
	}
	# Debian and Ubuntu ship Python without ensurepip, which a virtual environment needs for its pip.
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || {
		if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
			echo "this Python cannot make virtual environments; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2
			exit 1
		fi
		echo "installing python3-venv ..." >&2
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
	}
	echo "making $(VENV) with $$($(PYTHON) --version) ..." >&2
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)

# The filter on system calls is a C library of the system; without it the engine runs, but says so.
.PHONY: libseccomp
libseccomp: | $(BIN)/python
	@[ "$$(uname -s)" = Linux ] || exit 0
	! $(BIN)/python -c 'import ctypes; ctypes.CDLL("libseccomp.so.2")' 2>/dev/null || exit 0
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		echo "installing libseccomp2 ..." >&2
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libseccomp2 >/dev/null; } ||
			echo "note: libseccomp2 could not be installed; one layer of the lockdown stays off" >&2
	else
		echo "note: libseccomp2 is missing, so one layer of the lockdown stays off; on Debian and Ubuntu: sudo apt-get install libseccomp2" >&2
	fi
