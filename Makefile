# `make repro` runs the experiment, and `make test` the tests. `make` alone lists the rest.
PYTHON ?= python3
UV := uv==0.13.9
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true
# every stage is a process: without compiled packages each start takes twice as long
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help repro rivals ui mlflow test lint parity profile check-assets lock

help:
	@grep -E '^[a-z-]+:.*#' Makefile | awk -F ':.*# ' '{printf "make %-14s%s\n", $$1, $$2}'

# Bytecode is compiled here, a minute once: every stage and test starts a process, and some machines keep none.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with PYTHON=..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(UV)"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --allow-empty-requirements --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	touch $@

repro: .venv/installed # install, and run the experiment of params.yaml
	vapi run
	@echo "The tracked runs: make mlflow, then open http://127.0.0.1:5000"

rivals: .venv/installed # the table of VA-π's rivals, which builds on the experiment
	vapi run table@rivals

ui: .venv/installed # sweeps in the browser, until Ctrl-C; for other machines too: make ui HOST=10.0.0.5
	@vapi ui $(if $(filter command,$(origin HOST)),--host $(HOST))

mlflow: .venv/installed # the tracked runs in the browser, until Ctrl-C
	-vapi upload
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_SERVER_ALLOWED_HOSTS=127.0.0.1:5000,localhost:5000 \
	MLFLOW_BACKEND_STORE_URI=$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} mlflow server --host 127.0.0.1 --port 5000

test: .venv/installed # install, and run the tests
	pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed # style and types
	ruff check .
	ruff format --check .
	mypy

parity: .venv/installed # compare with the official numbers: make parity REFERENCE=DIR
	python -m tests.parity $(or $(REFERENCE),../shared/reference)

profile: .venv/installed # write a profile into params.yaml: make profile NAME=mnist
	@vapi profile $(NAME)

check-assets: .venv/installed # which files a profile needs, and which are missing: make check-assets NAME=mnist
	@vapi assets check $(NAME)

lock: # make requirements.lock anew from pyproject.toml
	uv pip compile --universal --generate-hashes --python-version 3.11 --extra lab --extra dev --quiet pyproject.toml -o requirements.lock
