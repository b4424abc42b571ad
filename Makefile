# The only entry: `make help` lists what there is. Everything runs in .venv, made from constraints.txt when it is missing or old.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= python3
# An import that may not cache its bytecode compiles torch, ray and transformers anew in every process.
export PYTHONDONTWRITEBYTECODE :=
export UV_SYSTEM_CERTS ?= 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

##@ The main job
.PHONY: demo
demo: $(STAMP) ## Pretrain, fine-tune, evaluate, register, serve and ask: all on this machine (KEEP=1 leaves the service up)
	$(BIN)/python examples/demo/demo.py $(if $(KEEP),--keep)

##@ Tests
.PHONY: test
test: lint test-unit test-integration e2e ## Everything that CI runs

.PHONY: test-unit
test-unit: $(STAMP) ## The inner loop, under a minute
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto tests/unit

# Files are handed out in the order of their names, so those that take long have early ones.
.PHONY: test-integration
test-integration: $(STAMP) cluster-binaries browser ## Real Ray, torchrun, MLflow, Kubernetes API and KubeRay; the main job in a short form
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10 tests/integration

# Root on Linux; where that is not so nothing runs, which is an error where CI is set.
E2E := PYTHONPATH=tests $(BIN)/python -m cluster.e2e -q -s --durations=10

.PHONY: e2e
e2e: $(STAMP) ## A real node: images, Helm, the whole chain and four faults (half an hour the first time)
	$(E2E) -m 'not long' tests/e2e

.PHONY: e2e-faults
e2e-faults: $(STAMP) ## A real node: every fault, security, Kueue, and all that a service does
	$(E2E) --with-kueue tests/e2e

.PHONY: test-long
test-long: $(STAMP) cluster-binaries ## What takes too long for CI: 200 random sequences of changes to resources, more that is compiled
	$(BIN)/pytest -q --durations=10 tests/long

.PHONY: cluster-binaries
cluster-binaries: $(STAMP) ## Build the test cluster's programs where they are missing: ten minutes the first time
	PYTHONPATH=tests $(BIN)/python -m cluster.build

.PHONY: browser
browser: $(STAMP) ## Install Debian's Chromium where there is no browser, for the tests of the chat page (root, 415 MB)
	PYTHONPATH=tests $(BIN)/python -m browser

.PHONY: cluster
cluster: $(STAMP) cluster-binaries ## A control plane with KubeRay, MLflow and the operator, until Ctrl-C
	PYTHONPATH=operator:tests $(BIN)/python -m cluster

.PHONY: golden
golden: $(STAMP) ## Write tests/golden/ anew; review the difference like code
	PYTHONPATH=tests $(BIN)/python -m golden --refresh

.PHONY: lint
lint: $(STAMP) ## Format, lint, types, layers, and generated files up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy operator/plinth_api operator/plinth_operator workloads/plinth_workloads examples/demo benchmarks tests
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory verify

.PHONY: verify
verify: $(STAMP) ## Fail when a generated file differs from what the models give
	$(BIN)/python -m plinth_api.generate --check

##@ Images
IMAGE_PREFIX ?= plinth-
VERSION ?= $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
BASE_IMAGE ?= docker.io/library/python:3.11-slim-bookworm
SOURCE_URL ?=
BUILD_FLAGS ?=
# A docker without its daemon builds nothing.
BUILDER ?= $(shell for tool in docker podman buildah; do $$tool info >/dev/null 2>&1 && echo $$tool && break; done)

.PHONY: images
images: image-operator image-workloads ## Build both images (IMAGE_PREFIX, VERSION, BASE_IMAGE, SOURCE_URL, BUILD_FLAGS; BUILDER: docker, podman or buildah)

.PHONY: image-vllm
image-vllm: DOCKERFILE := workloads/Dockerfile.vllm
image-vllm: ## Build the image of services that vLLM serves; it was not run yet (the same variables)

.PHONY: image-operator image-workloads
image-operator: DOCKERFILE := operator/Dockerfile
image-workloads: DOCKERFILE := workloads/Dockerfile
image-operator image-workloads image-vllm:
	@test -n "$(BUILDER)" || { echo "images need docker with its daemon, podman or buildah: none of them works here" >&2; exit 2; }
	$(BUILDER) build $(BUILD_FLAGS) --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VERSION=$(VERSION) \
	  --build-arg SOURCE_URL=$(SOURCE_URL) --file $(DOCKERFILE) --tag $(IMAGE_PREFIX)$(@:image-%=%):$(VERSION) .

##@ Development
.PHONY: venv
venv: $(STAMP) ## The environment that everything runs in

GROUPS := --group test --group browser --group lint
PINS := -c constraints.txt -c tests/constraints.txt

$(STAMP): pyproject.toml constraints.txt tests/constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	uv="$$(command -v uv || true)"; \
	if [ -z "$$uv" ]; then $(BIN)/pip install --quiet uv && uv=$(BIN)/uv || true; fi; \
	if [ -n "$$uv" ]; then \
	  VIRTUAL_ENV=$(VENV) "$$uv" pip install --quiet $(PINS) -e '.[operator,workloads]' $(GROUPS); \
	else \
	  $(BIN)/pip install --quiet --upgrade 'pip>=25.1' && \
	  $(BIN)/pip install --quiet $(PINS) -e '.[operator,workloads]' $(GROUPS); \
	fi
	touch $@

.PHONY: generate
generate: $(STAMP) ## Write crds/, the chart's copy and docs/api.md from the models
	$(BIN)/python -m plinth_api.generate

.PHONY: format
format: $(STAMP) ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: constraints
constraints: ## Compile constraints.txt, tests/constraints.txt and constraints-vllm.txt, the tested sets of versions, anew
	uv pip compile --quiet --universal --no-header --no-emit-index-url --no-annotate --python-version 3.11 \
	  --extra operator --extra workloads --group test --group lint pyproject.toml -o constraints.txt
	uv pip compile --quiet --universal --no-header --no-emit-index-url --no-annotate --python-version 3.11 \
	  -c constraints.txt --group browser -o tests/constraints.txt
	uv pip compile --quiet --no-header --no-emit-index-url --no-annotate --python-version 3.11 --only-binary :all: \
	  --python-platform x86_64-manylinux_2_36 --extra serve-vllm pyproject.toml -o constraints-vllm.txt

URL ?= http://127.0.0.1:8000/
.PHONY: screenshot
screenshot: $(STAMP) browser ## Write docs/images/chat.png anew, while `make demo KEEP=1` has its service up (URL)
	PYTHONPATH=tests $(BIN)/python -m chat_screenshot $(URL)

# A bound that is missed ends a script with 1: the others and the table come all the same, and then make fails.
define measure
	@failed=0; \
	$(foreach script,$(1),$(BIN)/python benchmarks/$(subst +, ,$(script)) || failed=1;) exit $$failed
endef

.PHONY: bench-train
bench-train: $(STAMP) ## The loop's overhead, throughput, checkpoints, the loss's memory, and peers, written to benchmarks/results/
	$(call measure,train_overhead.py train_overhead.py+--mlflow train_throughput.py ray_overhead.py checkpoint_stall.py \
	  loss_memory.py train_peers.py train_peers.py+--precision+bf16 tune_peers.py training_table.py)

.PHONY: bench-serve
bench-serve: export PYTHONPATH = operator:workloads:tests
bench-serve: $(STAMP) ## The light engine beside transformers' and a bare loop, what HTTP and new versions cost, half an hour
	$(call measure,serve_engine.py serve_adapters.py model_load.py serve_http.py serve_rollout.py serving_table.py)

.PHONY: soak-serve
soak-serve: $(STAMP) ## Half an hour of mixed load on a served model: memory, slots, files and answers stay as they were
	PYTHONPATH=operator:workloads:tests $(BIN)/python benchmarks/soak_serve.py

.PHONY: bench-operator
bench-operator: $(STAMP) cluster-binaries ## The operator's speed, memory and writes with 1,000 jobs, half an hour (SHORT=1: a tenth, no record)
	PYTHONPATH=operator:tests $(BIN)/python benchmarks/reconcile.py $(if $(SHORT),--short)

.PHONY: bench-platform
bench-platform: $(STAMP) ## What the platform costs a training: two worker pods against torchrun in one (root, 20 minutes)
	PYTHONPATH=operator:tests $(BIN)/python benchmarks/platform_cost.py

.PHONY: clean
clean: ## Remove the environment, caches and local runs
	rm -rf $(VENV) .plinth .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
