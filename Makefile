# Everything a developer does. The first target that needs it sets up .venv; nothing else is asked
# for than make and Python 3.11 or newer. Choose another Python with `make PYTHON=/path/to/python`.

PYTHON ?=
JOBS ?= 2
# Further arguments to pytest, as in `make test ARGS="tests/machine -x"`.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard statemachine_trainer tests tools benchmarks)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow oldest newest check lint format types imports docs site bench hooks clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(VENV)/.ready ## Create .venv and install everything into it

# pip writes on stdout what it fetches: a first set-up takes minutes and should not look hung.
$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@set -e; \
	modern='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "$$modern" 2>/dev/null; then \
		found=''; \
		for python in $(or $(PYTHON),python3.11 python3 python3.13 python3.12 python); do \
			if "$$python" -c "$$modern" 2>/dev/null; then found="$$python"; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11 or newer among: $(or $(PYTHON),python3.11 python3 python3.13 python3.12 python)." >&2; \
			echo "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		echo "Creating $(VENV) with $$("$$found" --version) ($$found)"; \
		"$$found" -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install --no-input --disable-pip-version-check \
		-c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## Train a small network on handwritten digits
	$(BIN)/smt demo

test: setup ## Run every test that is not marked slow
	$(PYTEST) -m "not slow" $(ARGS)

# pytest's exit status 5 says that no test was selected: no mistake here.
test-slow: setup ## Run the tests marked slow: crashes, long property tests
	@echo '$(PYTEST) -m slow --timeout 1800 $(ARGS)'
	@$(PYTEST) -m slow --timeout 1800 $(ARGS) || \
		{ status=$$?; [ $$status -eq 5 ] && echo 'No test is marked slow.' || exit $$status; }

# What is tried with the oldest and the newest versions: the machine, the loops, what is written down
# and read again, each of them fast. Several GB are fetched, so it is no part of CI.
SPAN_TESTS := tests/machine tests/loops tests/snapshot tests/resume tests/running tests/audit tests/data
define span
	$(BIN)/python -m pip install --no-input --disable-pip-version-check -q 'uv>=0.8'
	$(BIN)/uv venv -q --allow-existing --python $(BIN)/python .venv-$(1)
	$(BIN)/uv pip install --python .venv-$(1)/bin/python --resolution $(2) -e '.[test]'
	.venv-$(1)/bin/python -m pytest -n $(JOBS) --dist loadfile -m "not slow" $(if $(ARGS),$(ARGS),$(SPAN_TESTS))
endef

oldest: setup ## Run a part of the tests with the oldest versions that setup.cfg allows
	$(call span,oldest,lowest-direct)

newest: setup ## Run a part of the tests with the newest versions that setup.cfg allows
	$(call span,newest,highest --upgrade)

check: lint types imports docs ## Run every check that is not a test

lint: setup ## Check style and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: setup ## Format, and mend what ruff can mend
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

types: setup ## Check types, strictly
	$(BIN)/mypy $(SOURCES)

imports: setup ## Check the contract of the layers, and that no imports go in a circle
	$(BIN)/lint-imports
	$(BIN)/python tools/check_imports.py

docs: setup ## Check links, code and examples in the pages and docstrings
	$(BIN)/python tools/check_docs.py

site: setup ## Build the site from pages, notebooks and docstrings, into build/site
	$(BIN)/python tools/build_site.py

# Not the peers: they need the network and 2.6 GB for environments of their own.
bench: setup ## Run the benchmarks, one after the other
	@set -e; for script in $(filter-out $(addprefix benchmarks/,peers.py on_gpu.py on_nccl.py long.py gpt_on_ranks.py),$(wildcard benchmarks/[!_]*.py)); do \
		echo "$$script"; $(BIN)/python "$$script"; \
	done

hooks: setup ## Run lint and types before every commit of yours
	$(BIN)/python -m pip install --no-input --disable-pip-version-check \
		-c constraints.txt pre-commit
	$(BIN)/pre-commit install

clean: ## Remove .venv, caches and build products
	rm -rf $(VENV) .venv-oldest .venv-newest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
