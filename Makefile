# Everything here sets itself up first: a Python 3.11 or newer is all that has to be there.
#
#   make demo     demonstrations -> policy -> measured -> runs/demo/report.html
#   make check    ruff, pyright, the layer rules
#   make test     what CI runs
#   make proof    the slow evidence: kill matrices, other people's readers
#   make proof-kill   trains 21 runs that are killed 40 times, as the real command; each must end in the bits of one that was not
#   make soak     the same with 200 kills
#   make mutants  disables each guard: its test must fail
#   make bench-data      the data engine beside lerobot, measured in one run -> docs/benchmarks.md
#   make bench-training  training beside lerobot's ACT, likewise
#   make bench-saving    what checkpoints and resuming cost, likewise

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The newest of the interpreters that this machine has and that torch has wheels for.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3 python; do \
	if $$name -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$name; break; fi; done)
# Where torch comes from, beside PyPI. Without an NVIDIA GPU PyPI's own wheel would bring gigabytes of CUDA, so the CPU index is asked too.
# Another CUDA: make demo TORCH_INDEX=https://download.pytorch.org/whl/cu126. PyPI's own: make demo TORCH_INDEX=
TORCH_INDEX ?= $(shell if [ "$$(uname -s)" = Linux ] && [ ! -e /dev/nvidiactl ] && ! command -v nvidia-smi >/dev/null; \
	then echo https://download.pytorch.org/whl/cpu; fi)
# Side by side, one thread each: tests are many and small.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n > 8 ? 8 : n)))
DEMO_FLAGS ?=
BENCH_FLAGS ?=
KILL_FLAGS ?=

.PHONY: help setup demo check test proof proof-kill soak mutants bench-data bench-training bench-saving clean

help:
	@sed -n 's/^#   //p' Makefile

# Done once, and again when what is installed changes.
$(VENV)/installed: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "deftly needs Python 3.11 or newer: install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || [ -x $(BIN)/python ] || \
		{ echo "this Python cannot make a virtual environment: apt-get install -y python3-venv" >&2; exit 2; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch is large: a few minutes the first time)"
	@torch=$$($(PYTHON) -c 'import tomllib; print(next(d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if d.startswith("torch")))'); \
		PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --retries 2 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$torch"
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

setup: $(VENV)/installed

demo: setup
	@$(BIN)/deftly demo $(DEMO_FLAGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/pytest -n 0 tests/test_layers.py tests/test_bans.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) -m "not slow" --timeout 300

proof: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) -m slow --durations=10
	scripts/judge_lerobot.sh

proof-kill: setup
	$(BIN)/python tests/killing.py $(KILL_FLAGS)

soak: setup
	$(BIN)/python tests/killing.py --chains 10 --singles 0 $(KILL_FLAGS)

mutants: setup
	$(BIN)/python scripts/mutants.py --jobs $(JOBS)

bench-data: setup
	@scripts/judge_environment.sh 0.4.4 >/dev/null
	$(BIN)/python benchmarks/data.py $(BENCH_FLAGS)

bench-training: setup
	@scripts/judge_environment.sh 0.4.4 >/dev/null
	$(BIN)/python benchmarks/training.py $(BENCH_FLAGS)

bench-saving: setup
	$(BIN)/python benchmarks/saving.py $(BENCH_FLAGS)

# The environment, not your datasets and runs.
clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
