# Every target sets up what it needs: the virtual environment .venv with torch, Detectron2 and Loupe.
#
#   make install PYTHON=python3.12                 another interpreter (3.10 to 3.12)
#   make install TORCH_VERSION=2.11.0 TORCHVISION_VERSION=0.26.0
#   make install TORCH_VERSION=                    keep the environment's own pair
#   make install VENV_OPTIONS=--system-site-packages TORCH_VERSION=
#   make test PYTEST_OPTIONS="-k matcher -x"

PYTHON ?= python3
VENV ?= .venv
VENV_OPTIONS ?=
TORCH_VERSION ?= 2.12.0
TORCHVISION_VERSION ?= 0.27.0
PYTEST_OPTIONS ?=
# Processes of `make test`; 0 = all tests in one.
PYTEST_WORKERS ?= 2
DEMO_OPTIONS ?=
BENCH_OPTIONS ?=

RUN := $(VENV)/bin/python
PIP_INSTALL := $(RUN) -m pip install --quiet
STAMP := $(VENV)/.loupe-installed
SOURCES := setup.py pyproject.toml projects/loupe/install_detectron2.py $(wildcard projects/loupe/ops/csrc/*)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu lint bench bench-quick docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

install: $(STAMP) ## make .venv and install everything; instant when nothing changed

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is not a Python 3.10 or later; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)

# torch comes first, by its exact version (=== also refuses a local build such as +cpu, beside which
# torchvision does not import). Without build isolation nothing downloads a second torch.
$(STAMP): $(SOURCES) | $(RUN)
	$(PIP_INSTALL) 'setuptools>=64,<81' wheel
	$(if $(TORCH_VERSION),$(PIP_INSTALL) torch===$(TORCH_VERSION) torchvision===$(TORCHVISION_VERSION))
	$(RUN) tools/install_detectron2.py
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	cd / && $(abspath $(RUN)) -W ignore -c 'import cv2, detectron2, loupe, torchvision'
	@touch $(STAMP)

demo: install ## train, evaluate, adapt and draw on synthetic forgeries, on the CPU
	$(RUN) tools/demo.py $(DEMO_OPTIONS)

test: install ## run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_OPTIONS) tests

test-gpu: install ## run the tests that need a CUDA device
	$(RUN) -m pytest -q -m gpu $(PYTEST_OPTIONS) tests

lint: install ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: install ## measure the deformable-attention op
	$(RUN) -m research.benchmarks.ms_deform_attn $(BENCH_OPTIONS)

bench-quick: install ## say what became slower on this machine, in a minute (--update stores)
	$(RUN) -m research.benchmarks.quick $(BENCH_OPTIONS)

docs: install ## write the documentation site to output/site
	@$(RUN) -c 'import mkdocs, mkdocstrings' 2>/dev/null || \
		$(PIP_INSTALL) 'mkdocs>=1.6,<2' 'mkdocs-material>=9.5,<10' 'mkdocstrings[python]>=0.27,<2'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist output projects/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find projects tools tests research datasets -name __pycache__ -type d -prune -exec rm -rf {} +
	find projects -name '*.so' -delete
