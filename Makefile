# `make demo` and `make test` need Python 3.10-3.12 with pip and nothing else: they make their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export NXDI_SVD_CACHE ?= $(CURDIR)/.cache
export NXDI_SVD_COMPAT_DIR ?= $(NXDI_SVD_CACHE)/compat
export HF_HUB_OFFLINE := 1
# Threads that wait asleep: with any other job on a small machine, torch's spinning ones cost a time slice an operation.
export OMP_WAIT_POLICY ?= PASSIVE
# Two tests at a time, each file in one process (its fixtures are made once), and one thread for each process.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

.PHONY: demo test test-fast lint type bench compat install clean

demo: install  ## SmolLM2: compress, compare, report; results in demo/out/
	$(BIN)/python demo/run.py

test: install compat  ## the whole test suite, slow tests included
	$(PYTEST) -m "slow or not slow"

test-fast: install  ## the default tests only
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: install  ## strict for the package, plain for the scripts around it
	$(BIN)/mypy
	for folder in benchmarks demo integration/kernels integration/nxdi; do \
		$(BIN)/mypy --config-file= --python-version 3.10 --check-untyped-defs --follow-imports=silent --ignore-missing-imports $$folder || exit 1; \
	done

compat: install  ## other transformers versions for tests/modeling/test_compat.py
	$(BIN)/python tests/compat/prepare.py $(NXDI_SVD_COMPAT_DIR)

bench: install  ## kernel rows and the tables of docs/, counted by the simulator
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/kernel_tables.py
	$(BIN)/python benchmarks/groups.py
	$(BIN)/python benchmarks/readme.py
	$(BIN)/python benchmarks/nkibench.py $(if $(NXDI_SVD_NKIBENCH),,--page)

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg constraints/dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 13) else f"found Python {v[0]}.{v[1]}, need 3.10-3.12: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/dev.txt -e ".[test,dev,eval]"
	touch $@

clean:
	rm -rf $(VENV) demo/out build dist *.egg-info
