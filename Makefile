# make demo: the whole workflow on a CPU, with nothing to download but the packages.
# On a machine with a CUDA card, install with environment.yml instead: these targets always take the CPU's packages.
BIN := .venv/bin
PYTHON ?= python3
# The card's environment: the versions of environment.yml. Its torch also runs without a card. It wants Python 3.12.
CARD := .venv-card/bin
PYTHON312 ?= $(shell for p in python3.12 $(HOME)/.pyenv/versions/3.12.*/bin/python $(PYTHON); do \
	"$$p" -c "import sys; sys.exit(sys.version_info[:2] != (3, 12))" 2>/dev/null && echo "$$p" && break; done)

.PHONY: install demo test test-card test-slurm test-container torture docs lock lock-card

install: .venv/installed

# Everything comes from the lock, so that nothing is left to resolve; but torch brings what its build needs (CUDA's
# packages, or none). Without --no-compile pip would compile all of it, and Python compiles what it imports anyway.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(INSTALL) torch --constraint requirements.lock
	$(INSTALL) --no-deps --requirement requirements.lock
	$(INSTALL) --no-deps --editable .
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

.venv-card/installed: pyproject.toml requirements-card.lock
	@test -n "$(PYTHON312)" || (echo "make test-card: no Python 3.12 here; install one, or give PYTHON312=..."; exit 1)
	$(PYTHON312) -m venv .venv-card
	$(CARD)/python -m pip install --quiet --no-compile --no-deps --requirement requirements-card.lock
	$(CARD)/python -m pip install --quiet --no-compile --no-deps --editable .
	touch $@

# Unsloth's own Python over an emulated card: tests/card/fakecard.py says what that shows and what it does not.
test-card: .venv-card/installed
	PATH="$(CURDIR)/$(CARD):$$PATH" PYTHONPATH="$(CURDIR)/tests/card/site" FAKECARD=4090 OMP_NUM_THREADS=1 \
		$(CARD)/python -m pytest tests/card --numprocesses auto --dist loadfile

# profiles/slurm on a real SLURM of this machine alone, with two emulated cards: half an hour on two busy cores.
test-slurm: install
	$(INSTALL) --constraint requirements.lock --editable '.[slurm]'
	tests/slurm/cluster.sh $(BIN)/python -m pytest tests/slurm --durations 0

# The steps of the Dockerfile in a container, or in a plain folder: which of them, it says (tests/container/recipe.py).
test-container: install
	CONTAINER_OF_TESTS=1 PYTHON312="$(PYTHON312)" $(BIN)/python -m pytest tests/container -s --log-cli-level INFO --durations 0

docs: install
	$(BIN)/python tools/document.py

# After a change of pyproject.toml: what pip now resolves, for everyone. No local versions, no paths, and in the first
# nothing of CUDA, which is torch's own matter.
FREEZE := -m pip freeze --exclude-editable | sed -E '/^\#|@/d; s/\+[a-z0-9.]+$$//'
lock: install
	$(BIN)/python -m pip install --quiet --editable '.[cpu,dev]'
	$(BIN)/python $(FREEZE) | grep -vE '^(cuda|nvidia|triton|setuptools|wheel|snakemake-executor)' > requirements.lock

lock-card: .venv-card/installed
	$(CARD)/python -m pip install --quiet --editable '.[gpu,dev]'
	$(CARD)/python $(FREEZE) > requirements-card.lock

# What a hundred kills, full disks and hostile servers do (docs/reliability.md): some twenty minutes.
torture: install
	KILLS=100 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability --numprocesses auto --dist loadfile
