# Everything a newcomer needs: `make run` serves, `make test` checks. Nothing else has to be installed by hand.
.DELETE_ON_ERROR:
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# The newest torch the project is tested with; serving needs none. On Linux this line alone takes the CUDA build
# unless told otherwise: TORCH="torch==2.13.0 --index-url <PyTorch's CPU index>" make install
TORCH ?= torch==2.13.0
HOST ?= 127.0.0.1
PORT ?= 8080
# Python compiles what it imports; pip would compile all, for a minute and more.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
SERVES := $(VENV)/.serves
READY := $(VENV)/.ready
# Real 100-best lists to time on, where they are; without any, lists are made up.
LISTS ?= ../shared/data/nbest/*.pocketsphinx.jsonl.gz ../shared/data/nbest/*.sri_decipher.jsonl.gz
BENCH ?=
# What the report of a GPU compares with.
GPU_PEERS ?= 'transformers>=5,<6'
GPU_PYTHON ?= $(VENV)/gpu/bin/python
ARGS ?=

.PHONY: help install run test lint bench bench-gpu loadtest fuzz audit image deploy-check deploy-run ray-check clean
help:  ## Say what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(READY)  ## Make .venv with secondpass, torch to train with, and the tools that check it.

$(READY): pyproject.toml $(wildcard quantized_lm/ops/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable '.[dev,browser]'
	touch $@ $(SERVES)

# What serves alone; make install makes it too.
$(SERVES): pyproject.toml $(wildcard quantized_lm/ops/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

run: $(SERVES)  ## Serve the bundled model on 127.0.0.1:8080 and print a request to try.
	@printf "%s\n" "Once it runs, try:" "curl -s http://$(HOST):$(PORT)/v1/rescore -H 'Content-Type: application/json' -d @deploy/sample_request.json"
	$(BIN)/secondpass serve --host $(HOST) --port $(PORT)

test: $(READY) lint  ## All checks and tests.
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --cov --cov-report=
	$(BIN)/coverage report

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## Time this machine, our kernels and other systems; BENCH="--quick" for a trial of a minute.
	$(BIN)/secondpass bench $(addprefix --lists ,$(wildcard $(LISTS))) $(BENCH)

loadtest: $(READY)  ## Load a server with planned arrivals, 8 minutes; ARGS=--quick for a trial of 40 s.
	$(BIN)/python -m loadtest $(addprefix --lists ,$(wildcard $(LISTS))) $(ARGS)

audit: $(READY)  ## Look up what is installed among the known vulnerabilities; needs the advisory service.
	test -x $(VENV)/audit/bin/pip-audit || ($(BIN)/python -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet --no-compile 'pip-audit>=2.7,<3')
	$(BIN)/python deploy/audit.py $(VENV)/audit/bin/pip-audit

fuzz: $(READY)  ## 100,000 damaged requests to every POST route: no 500, no hang, memory flat; some minutes.
	$(BIN)/python -m tests.fuzzing.fuzz $(ARGS)

bench-gpu: $(READY)  ## On a GPU: check its kernels, time them, whole lists and the service; BENCH=--rehearse without one.
ifneq ($(findstring rehearse,$(BENCH)),)
	test $(GPU_PYTHON) != $(VENV)/gpu/bin/python || tests/gpu_env/make.sh $(VENV)/gpu $(VENV)
	TRITON_INTERPRET=1 $(GPU_PYTHON) -m service bench --gpu $(BENCH)
else
	$(INSTALL) $(GPU_PEERS)
	$(BIN)/python -m service bench --gpu $(BENCH)
endif

image:  ## Build the image secondpass:0.1.0.
	docker build --tag secondpass:0.1.0 --build-arg REVISION="$$(git rev-parse HEAD)" .

deploy-check: $(READY)  ## Check deploy/ with the tools that will read it, installed where that is possible.
	deploy/check.sh $(BIN)/python

deploy-run: $(READY)  ## Some minutes: a real Prometheus on the real service; the image, built and run.
	$(BIN)/python -m tests.deploy.live
	tests/deploy/image.sh

ray-check: $(READY)  ## Some minutes: Ray in an environment of its own, two nodes, one of which goes away.
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" tests/ray_env/make.sh $(VENV)/ray
	SECONDPASS_RAY_PYTHON="$(CURDIR)/$(VENV)/ray/bin/python" $(BIN)/python -m pytest tests/ray

clean:  ## Remove everything `make` made.
	rm -rf $(VENV) .bench build .coverage .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
