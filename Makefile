# Each target makes its own virtual environment when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-ray lint bench bench-smoke speedrun gpu-check docs attack attack-short mutants clean

# Without near copies, which take a third of the time of a row.
demo: $(INSTALLED)
	$(BIN)/synth benchmark --dataset house-numbers --recipes cdcgan-v2-quick,dcgan-quick \
	    --per-class 1000 --protocol quick-v1 --metrics cas,gan-test,fidelity,diversity \
	    --runs demo/runs --datasets demo/datasets --results demo/results

# A worker for each core, with a thread each: two pools of threads on the same cores fight.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto

# A Ray cluster of two nodes on this machine. By itself: it wants both cores.
test-ray: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[ray]'
	$(BIN)/pytest -q tests/test_spread.py -k ray

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A quarter of an hour on two cores; writes results/speed.*, growth.* and paths.*.
bench: $(INSTALLED)
	$(BIN)/pip install --quiet lightning keras
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.paths

# Seconds until a generator's images are worth 0.80, 0.90, 0.95 and 1.00 of the real ones.
speedrun: $(INSTALLED)
	$(BIN)/python -m benchmarks.speedrun --jobs 2

# Needs a CUDA device: its tests, the pipeline in 60 s, peers, batch sizes; writes results/gpu.*.
gpu-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu_check

# The pages of docs/ in build/docs. A warning is an error, but with --quiet mkdocs counts none.
docs: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build

bench-smoke: $(INSTALLED)
	$(BIN)/python -m benchmarks --smoke

# About an hour on two cores: kills, full disks, many writers, mutated files, forged records.
attack: $(INSTALLED)
	$(BIN)/python -m tests.attack --table results/RELIABILITY.md

attack-short: $(INSTALLED)
	$(BIN)/python -m tests.attack --short

# Hours on two cores: changes eval/ and the training loop at random; does a test notice?
mutants: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[mutants]'
	$(BIN)/python -m tests.mutants --count 300 --seed 2 --table build/MUTANTS.md

clean:
	rm -rf $(VENV) demo build *.egg-info

# The marker is written last: an interrupted installation is done again.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test,lint]'
	touch $@
