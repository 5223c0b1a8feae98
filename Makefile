# Everything runs in .venv, which the first `make demo` or `make test` sets up.
#
#   PYTHON=python3.12                     the interpreter that .venv is made from (3.10 or newer)
#   TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#                                         which PyTorch pip installs first; on Linux a plain `torch` is a CUDA build
#   COMFYUI_PATH=/path/to/ComfyUI         the ComfyUI that `make test` tests against (else ~/comfy/ComfyUI, else none)
#   WORKERS=4                             processes of `make test` (else one per core)
#   CHROMIUM=/path/to/chromium            the browser of `make browser` (else a Chromium or Chrome on the path)
#   SCREENSHOTS=folder                    where `make browser` keeps its screenshots (else nowhere)

PYTHON ?= python3
TORCH ?= torch
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BROWSER_SETUP = $(BIN)/python tests/comfyui_checkout.py && $(BIN)/python -m pip install --quiet --editable ".[browser]" \
  && PYTHONPATH=tests $(BIN)/python -m browser.frontend_package

NEWEST_PAGE = $(VENV)/newest_frontend

LINT = $(BIN)/ruff check . && $(BIN)/mypy
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal
COMFYUI_PATH ?= $(HOME)/comfy/ComfyUI

.DEFAULT_GOAL := help
.PHONY: help demo test test-nodes comfyui browser workflows lint clean

help: ## show this list
	@echo "usage: make <target>"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## distil the small shipped teacher into a student, sample both, write an image
	$(BIN)/python -m demo

test: $(INSTALLED) ## lint, then run every test (those that need a ComfyUI only where one is found)
	$(BIN)/python tests/comfyui_checkout.py
	$(LINT)
	$(PYTEST)

test-nodes: $(INSTALLED) ## run the tests of the nodes alone (needs a ComfyUI)
	$(BIN)/python tests/comfyui_checkout.py
	$(PYTEST) tests/nodes

comfyui: $(INSTALLED) ## install a ComfyUI at COMFYUI_PATH with comfy-cli, for the tests of the nodes
	$(BIN)/comfy --skip-prompt tracking disable
	$(BIN)/comfy --skip-prompt --workspace "$(COMFYUI_PATH)" install --cpu --skip-manager --skip-torch-or-directml --skip-requirement

browser: $(INSTALLED) ## open and run the example workflows in a real ComfyUI page (needs a ComfyUI and a Chromium)
	$(BROWSER_SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(NEWEST_PAGE) comfyui-frontend-package
	OMP_NUM_THREADS=1 PYTHONPATH=$(NEWEST_PAGE) $(BIN)/python -m pytest tests/browser

workflows: $(INSTALLED) ## save templates, blueprints and the screenshots of the pages with the real frontend
	$(BROWSER_SETUP)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m browser.make_workflows
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m browser.make_subgraphs
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m browser.make_help_images
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m browser.make_screenshots

lint: $(INSTALLED) ## run ruff, and mypy on rmd_core
	$(LINT)

clean: ## remove .venv and the caches
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Re-installs when pyproject.toml changes; the stamp comes last, so a broken install starts over.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[train,quantised,evaluate,captions,test,dev]"
	@touch $@
