# Everything runs in .venv, which the first `make demo` or `make test` sets up.
#
#   PYTHON=python3.12                     the interpreter that .venv is made from (3.10 or newer)
#   TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#                                         which PyTorch pip installs first; on Linux a plain `torch` is a CUDA build
#   COMFYUI_PATH=/path/to/ComfyUI         the ComfyUI that `make test` tests against (else ~/comfy/ComfyUI, else none)
#   CHROMIUM=/path/to/chromium            the browser of `make browser` (else a Chromium or Chrome on the path)
#   SCREENSHOTS=docs/images               where `make browser` keeps its screenshots (else nowhere)

PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BROWSER_SETUP = $(BIN)/python tests/comfyui_checkout.py && $(BIN)/python -m pip install --quiet --editable ".[browser]" \
  && PYTHONPATH=tests $(BIN)/python -m browser.frontend_package

LINT = $(BIN)/ruff check . && $(BIN)/mypy
NODE_TESTS = tests/test_comfy_*.py tests/test_nodes_*.py tests/test_help_pages*.py tests/test_locales.py \
  tests/test_plan_picture.py tests/test_registry.py tests/test_subgraphs.py tests/test_trained_to_nodes.py \
  tests/test_workflow_files.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-nodes browser workflows lint clean

help: ## show this list
	@echo "usage: make <target>"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## distil the small shipped teacher into a student, sample both, write a picture
	$(BIN)/python -m demo

test: $(INSTALLED) ## lint, then run every test (those that need a ComfyUI only where one is found)
	$(BIN)/python tests/comfyui_checkout.py
	$(LINT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-nodes: $(INSTALLED) ## run the tests of the nodes alone (needs a ComfyUI)
	$(BIN)/python tests/comfyui_checkout.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(NODE_TESTS)

browser: $(INSTALLED) ## open and run the example workflows in a real ComfyUI page (needs a ComfyUI and a Chromium)
	$(BROWSER_SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

workflows: $(INSTALLED) ## make workflows/, subgraphs/ and the pictures of the help pages with the real frontend
	$(BROWSER_SETUP)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m browser.make_workflows
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m browser.make_subgraphs
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m browser.make_help_pictures

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
	$(BIN)/python -m pip install --quiet --editable ".[train,quantised,test]"
	@touch $@
