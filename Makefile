# make demo: the whole workflow on a CPU, with nothing to download but the packages.
# On a machine with a CUDA card, install with environment.yml instead: these targets always take the CPU's packages.
BIN := .venv/bin
PYTHON ?= python3

.PHONY: install demo test docs lock

install: .venv/installed

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[cpu,dev]' -c requirements.lock
	touch $@

demo: install
	$(BIN)/snakemake --cores all

test: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

docs: install
	$(BIN)/python tools/document.py

# What is installed now, as constraints for everyone: no local versions, no paths.
lock:
	$(BIN)/python -m pip freeze --exclude-editable | sed -E '/^#|@/d; s/\+cpu$$//' > requirements.lock
