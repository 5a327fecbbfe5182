# make demo: install, make data, sweep the five scenarios on Ray, write the comparison.   make test, make check: what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TESTED := jobs/constraints.txt
LOWEST := jobs/lowest.txt
# What `make demo` needs, and with it what the tests and checks need.
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
# Python writes the bytecode of what it imports by itself; pip would take a minute to do so for all of it. Where Python is
# told not to write any, as in many containers, it must be there, or every process of Ray's would compile all anew.
LAZY := $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)
INSTALL = $(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install --quiet --constraint $(TESTED) --upgrade pip && \
	$(BIN)/python -m pip install --quiet $(LAZY) --constraint $(TESTED) --editable

.PHONY: demo test test-slow check package format docs constraints test-lowest clean

demo: $(RUNTIME)
	$(BIN)/trm-ray sweep --config-name demo --overwrite

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

# Jobs, nodes that come and go, trials of several workers, faults on purpose: as long again as the others.
test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow --numprocesses 2 --no-loadscope-reorder

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# docs/config.md, from what trm_ray/config/ and trm_ray/kinds/ say of each key.
docs: $(RUNTIME)
	$(BIN)/python docs/reference.py > docs/config.md

# The wheel works away from the checkout, and the source archive makes the same one.
package: $(DEV)
	.ci/package $(VENV)

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(RUNTIME): pyproject.toml $(TESTED)
	$(INSTALL) .
	touch $@

$(DEV): pyproject.toml $(TESTED)
	$(INSTALL) '.[dev]'
	touch $(RUNTIME) $@

# Renew the versions that everything installs, and the oldest that are allowed. Run the tests with them before you commit.
constraints: $(VENV)/.uv
	echo pip | $(COMPILE) --all-extras --upgrade --output-file $(TESTED) pyproject.toml -
	$(COMPILE) --extra dev --resolution lowest-direct --output-file $(LOWEST) pyproject.toml

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-annotate --custom-compile-command 'make constraints'

$(VENV)/.uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	touch $@

# The tests without Ray, with the oldest releases that pyproject.toml allows, in an environment of its own.
test-lowest:
	$(MAKE) VENV=$(VENV)-lowest TESTED=$(LOWEST) $(VENV)-lowest/.dev
	$(VENV)-lowest/bin/python -m pytest -m 'not ray and not slow' --numprocesses 2 --ignore tests/distributed

clean:
	rm -rf $(VENV) $(VENV)-lowest .pytest_cache .mypy_cache .ruff_cache
