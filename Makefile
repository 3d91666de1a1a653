# raylens: `make run` and `make test` do all of their set-up themselves.
#
#   make run [CONFIG=configs/cpu.yaml] [TORCH_INDEX=https://download.pytorch.org/whl/cpu]
#   make test | check | test-clients | test-cluster | contract | soak | bench | train-pocket [FAMILY=smolvlm|qwen2_5_vl|moondream]

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml
FAMILY ?= smolvlm
MINUTES ?= 88
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install install-dev run check format test test-clients test-cluster contract soak bench train-pocket

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "raylens needs Python 3.11 or newer; set PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module: on Debian, apt-get install python3-venv"; exit 1; }

# torch first, and by itself: an index of its own (TORCH_INDEX) decides between a CPU and a CUDA build.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP_INSTALL) torch $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX))
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

run: install
	@exec $(BIN)/raylens run $(CONFIG)

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install-dev
	$(BIN)/python -m pytest

test-clients: install-dev
	$(BIN)/python -m pytest -m clients tests/clients

test-cluster: install-dev
	$(BIN)/python -m pytest -m cluster

contract: install-dev
	$(BIN)/python -m pytest -m contract tests/openapi

soak: install-dev
	$(BIN)/python -m pytest -m soak tests/soak

bench: install-dev
	$(BIN)/python -m benchmarks.pocket --all
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.jobs
	$(BIN)/python -m benchmarks.preprocessing

train-pocket: install
	$(BIN)/python -m training $(FAMILY) --minutes $(MINUTES)
