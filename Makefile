# What a person types; `make` alone lists it. Everything runs in .venv, which `setup` makes.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test bench lint wasm clean

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

test: $(VENV)/.dev wasm ## lint, format, types, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q

bench: $(VENV)/.dev ## measure this machine
	@$(BIN)/python benchmarks/run.py

lint: $(VENV)/.dev ## repair what ruff can, then types
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/mypy

# For the examples and the tests of WebAssembly functions; neither the engine nor the demo needs them.
wasm: | $(BIN)/python ## install compilers of WebAssembly: clang, Rust, AssemblyScript
	@examples/wasm/install-compilers.sh $(VENV)

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
