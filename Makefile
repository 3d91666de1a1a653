# raylens: `make run` and `make test` do all of their set-up themselves.
#
#   make run [CONFIG=configs/cpu.yaml] [TORCH_INDEX=https://download.pytorch.org/whl/cpu]
#   make docker-cpu | docker-gpu | wheel     docs/containers.md
#   make worker RAY_ADDRESS=head:6379        adds this machine to a Ray cluster
#   make test | check | test-browser | test-clients | test-cluster | test-wheel | test-kernels | contract | soak | bench
#   make train-pocket [FAMILY=smolvlm|qwen2_5_vl|moondream]

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml
FAMILY ?= smolvlm
MINUTES ?= 88
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

COMPOSE ?= docker compose

.PHONY: test-browser install install-dev run server worker docker-cpu docker-gpu wheel check format test test-clients test-cluster \
	test-wheel test-kernels contract soak bench train-pocket

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "raylens needs Python 3.11 or newer; set PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module: on Debian, apt-get install python3-venv"; exit 1; }

# torch first, and by itself: an index of its own (TORCH_INDEX) decides between a CPU and a CUDA build.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP_INSTALL) torch $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX))
	$(PIP_INSTALL) --editable .
	-@$(BIN)/python -m models.cpu.build
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

run: install
	@exec $(BIN)/raylens run $(CONFIG)

server: run

# Workers of the job queue are part of the server. This one works on a server's models, on another machine.
worker: install
	@test -n "$(RAY_ADDRESS)" || { echo "background jobs need no worker of their own: they run in the server (make server)."; \
	  echo "To add this machine to a Ray cluster: make worker RAY_ADDRESS=head:6379 (docs/cluster.md)"; exit 2; }
	@exec env $$($(BIN)/python -m deployments.ray_environment) $(BIN)/ray start --address=$(RAY_ADDRESS) --block

docker-cpu:
	$(COMPOSE) up --build

docker-gpu:
	RAYLENS_SERVICE=raylens-gpu $(COMPOSE) --profile gpu up --build --scale raylens=0

wheel: install-dev
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

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

test-browser: install-dev
	$(BIN)/python -m pytest -m browser tests/browser

test-clients: install-dev
	$(BIN)/python -m pytest -m clients tests/clients

test-cluster: install-dev
	$(BIN)/python -m pytest -m cluster

test-wheel: install-dev
	$(BIN)/python -m pytest -m wheel tests/packaging

test-kernels: install-dev
	$(BIN)/python -m pytest -m 'sanitizers or emulated' tests/unit/models/cpu

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
