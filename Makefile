# One command each; `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A stamp per set of extras: installed once, and again when pyproject.toml changes.
DEMO_READY := $(VENV)/.demo-installed
DEV_READY := $(VENV)/.dev-installed
GPU_READY := $(VENV)/.gpu-installed
# For Python 3.11, which the images have; the hashes are those of every platform's wheels.
LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform linux --generate-hashes --no-annotate \
	--custom-compile-command 'make lock'
# Builds Kubernetes and the images where they are missing, then runs a command where real nodes may start.
ENCLOSED = $(BIN)/python tests/cluster/beds/enclosure.py
CODE := operator runtime tests examples benchmarks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-e2e test-full-image cluster-demo cluster-shell lint typecheck format crds lock clean \
	test-gpu bench-plumbing bench-compute bench-bulk bench-simulated bench-memory bench-start bench-images bench-partition bench-partition-gpu \
	bench-planner bench-operator bench-lost-node bench-cluster bench-span

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO_READY) ## Train five members, serve them as one ensemble, show what it is worth
	$(BIN)/python examples/digits/demo.py

test: lint typecheck ## Check style, types and layers, then run all tests
	$(ENCLOSED) $(BIN)/pytest --numprocesses 3

test-e2e: $(DEV_READY) ## Run the tests that need real nodes: here (root on Linux), or in the cluster that KUBECONFIG names
ifdef KUBECONFIG
	ENSEMBLES_TEST_KUBECONFIG="$(KUBECONFIG)" $(BIN)/pytest tests/cluster/machines
else
	$(ENCLOSED) $(BIN)/pytest tests/cluster/machines
endif

test-full-image: $(DEV_READY) ## Build the large image, with torch and CUDA, and serve with it (root; ten minutes, 30 GiB)
	$(BIN)/pytest tests/cluster/slow_full_image.py

test-gpu: $(GPU_READY) ## Run the tests that need a GPU; changes .venv: onnxruntime-gpu takes onnxruntime's place
	$(BIN)/pytest tests/gpu

cluster-demo: $(DEV_READY) ## Bring up a cluster of real nodes, install the chart, serve the digits example, show it
	$(ENCLOSED) $(BIN)/python tests/cluster/beds/play.py demo

cluster-shell: $(DEV_READY) ## The same, and then a shell with kubectl and helm
	$(ENCLOSED) $(BIN)/python tests/cluster/beds/play.py shell

lint: $(DEV_READY) ## Check style, format and the floors of the rooms
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports

typecheck: $(DEV_READY) ## Check types (mypy, strict)
	$(BIN)/mypy

format: $(DEV_READY) ## Format the code and sort the imports
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

crds: $(DEV_READY) ## Generate crds/, the chart's copy and docs/api.md from the manifest's models
	$(BIN)/python -m ensemble_operator.cli.crd
	$(BIN)/python -m ensemble_operator.cli.crd charts/ensembles/files/crds
	$(BIN)/python -m ensemble_operator.cli.reference > docs/api.md

lock: $(DEV_READY) ## Pin what the images install, with hashes (requirements/)
	$(LOCK) requirements/build.in -o requirements/build.lock
	$(LOCK) pyproject.toml --extra operator -o requirements/operator.lock
	$(LOCK) pyproject.toml --extra runtime --extra s3 -o requirements/runtime-onnx.lock
	$(LOCK) pyproject.toml requirements/full.in --extra runtime --extra s3 --extra torch \
		--override requirements/full.override -o requirements/runtime-full.lock

venv: $(DEV_READY) ## Make .venv and install the project with its tools

bench-plumbing: $(DEV_READY) ## Requests/s of tiny members against a bare server (needs wrk)
	$(BIN)/python benchmarks/plumbing.py

bench-compute: $(DEV_READY) ## Rows/s of heavy members against the same models run bare
	$(BIN)/python benchmarks/compute.py

bench-bulk: $(DEV_READY) ## Rows/s of requests of 1,024 rows against the same models run bare
	$(BIN)/python benchmarks/bulk.py

bench-simulated: $(DEV_READY) ## Throughput on simulated GPUs against the plan's promise
	$(BIN)/python benchmarks/simulated.py

bench-memory: $(DEV_READY) ## Memory of each further cell
	$(BIN)/python benchmarks/memory.py

bench-start: $(DEV_READY) ## Seconds from start to ready
	$(BIN)/python benchmarks/starting.py

bench-images: $(DEV_READY) ## Sizes of the images (needs root, buildah, debootstrap)
	$(BIN)/python benchmarks/images.py

bench-lost-node: $(DEV_READY) ## Time without service when the node of the only copy dies (needs what test-e2e needs)
	$(BIN)/python benchmarks/lost_node.py

bench-operator: $(DEV_READY) ## The operator's response, and 1,000 ensembles on 1,000 nodes (builds a control plane once)
	$(BIN)/python benchmarks/operator_response.py
	$(BIN)/python benchmarks/operator_scale.py

bench-cluster: $(DEV_READY) ## Seconds from kubectl apply to the first prediction (root on Linux)
	$(ENCLOSED) $(BIN)/python benchmarks/first_prediction.py

bench-span: $(DEV_READY) ## What a member on another node costs its head (needs wrk)
	$(BIN)/python benchmarks/span.py

bench-partition: $(DEV_READY) ## Recurrent models on two cores against one, and against the machine's capacity
	$(BIN)/python benchmarks/partition.py
	$(BIN)/python benchmarks/partition_wide.py

bench-partition-gpu: $(GPU_READY) ## Recurrent models on a GPU and a core (needs a GPU; changes .venv as test-gpu does)
	$(BIN)/python benchmarks/partition_gpu.py

bench-planner: $(DEV_READY) ## Gain of the planner over its baseline, over many random problems
	$(BIN)/python benchmarks/planner_sweep.py

clean: ## Remove caches and what the demo trained; .venv stays
	rm -rf examples/digits/build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(DEMO_READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(DEV_READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(DEMO_READY)

# Both distributions of ONNX Runtime write into the same folder.
$(GPU_READY): requirements/full.in $(DEV_READY)
	@$(BIN)/python -c 'import sys; from ensemble_runtime.devices.nvidia import gpus; sys.exit(None if gpus() else "There is no NVIDIA GPU here")'
	$(BIN)/python -m pip uninstall --yes onnxruntime onnxruntime-gpu
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements/full.in
	@touch $@
