# `make demo` and `make test` set everything up themselves, in .venv.
# TORCH_INDEX may name PyTorch's index of CPU wheels: a torch ten times smaller than the default one, with CUDA.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
MODEL := models/SmolLM2-135M-Instruct
PAIRS ?= ../shared/data/noveltybench/pairs_train.jsonl
GROUPS ?= ../shared/data/noveltybench/groups_odd.jsonl

ifdef TORCH_INDEX
export PIP_EXTRA_INDEX_URL := $(TORCH_INDEX)
endif
# DeepSpeed compiles its CPU Adam at the first run and looks for ninja on the path.
demo study test check-recipes bench: export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE := 1

.PHONY: help install demo study test check-recipes compat lint bench bench-gpu default-model clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(INSTALLED) ## .venv with the pinned CPU stack and this package

$(INSTALLED): requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements/cpu.txt setuptools wheel ninja packaging psutil py-cpuinfo numpy
	$(BIN)/pip install --constraint requirements/cpu.txt torch==2.13.0
	$(BIN)/pip install --no-deps --no-build-isolation --requirement requirements/cpu.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(MODEL)/config.json: | $(INSTALLED)
	$(BIN)/python examples/build_smollm2.py $(MODEL)

demo: $(INSTALLED) $(MODEL)/config.json ## train SmolLM2-135M with DARLING on the CPU, and show what it did
	$(BIN)/python examples/demo.py --model $(MODEL) --out runs/demo

# A file stays in one process, so that its runs and servers start once. PASSIVE, and one thread for NumPy's products:
# threads that wait for work would spin, and take the cores from the other process.
test: $(INSTALLED) $(MODEL)/config.json ## every test, the end-to-end runs included, in two processes
	OMP_WAIT_POLICY=PASSIVE OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

study: $(INSTALLED) $(MODEL)/config.json ## the study of docs/study.md: days; the same command goes on where it ended
	$(BIN)/python examples/study/study.py --model $(MODEL) --out runs/study
	$(BIN)/python examples/study/tables.py

check-recipes: $(INSTALLED) ## each recipe and variant: its flags, then one step on the CPU with small stand-ins
	$(BIN)/python examples/recipes/check.py

compat: $(INSTALLED) ## the hooks and the patch on the real source of each OpenRLHF release, the newest one included
	$(BIN)/python tests/openrlhf/compat.py
	DARLING_TEST_ALL_RELEASES=1 $(BIN)/python -m pytest tests/openrlhf/test_patches.py

lint: $(INSTALLED) ## ruff, as pre-commit runs it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED) $(MODEL)/config.json ## every benchmark, and benchmarks/README.md with their tables
	$(BIN)/python benchmarks/run.py

bench-gpu: ## the GPU's tables alone, by the python3 that trains, in under four minutes; benchmarks/README.md with them
	python3 benchmarks/gpu.py
	python3 benchmarks/report.py

default-model: $(INSTALLED) ## the partition model `default` again, from PAIRS and GROUPS, NoveltyBench's labelled ones
	rm -rf runs/default-model
	$(BIN)/python benchmarks/readings.py --write $(GROUPS) runs/groups_read.jsonl
	$(BIN)/darling-train-partition $(PAIRS) $(GROUPS):0.1 -o runs/default-model --dtype float32 \
	  --adapt $(PAIRS) runs/groups_read.jsonl:0.1
	cp runs/default-model/head.safetensors runs/default-model/report.json darling_plugin/partition/default/
	cp runs/default-model/reliability.png docs/partition-models/default-reliability.png

clean: ## what can be made again, but for .venv
	rm -rf runs/demo runs/wheels runs/check-recipes models .pytest_cache .ruff_cache .hypothesis build *.egg-info
