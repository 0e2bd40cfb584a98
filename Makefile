# make demo         trains a model on real data and draws toy_demo.png; makes the environment first, if there is none
# make check        lint and a quick part of the suite, for use between edits; about a minute
# make test         lint, then the suite against the installed package, with its coverage gate; 8 to 10 minutes
# make test-exhaustive  further variants of the losses and slow combinations; longer than make test
# make test-compiled  compiles every loss in hundreds of cases on 1, 2 and 4 threads and compares with eager mode; under two hours
# make lint         style, format, types, layers
# make bench        time and memory of every loss beside a peer package and torch.sort, into docs/; about 25 minutes
# make bench-paths  both sides of each choice between two evaluators, into docs/paths.md; two minutes
# make bench-distributed  a step of several processes beside that of one, ours and others', into docs/; about 10 minutes
# make study        losses against tuned cross-entropy on real tables: thousands of small models, into docs/; about 85 minutes
# make test-oldest  the suite on the oldest supported torch, in an environment of its own (a download of gigabytes)
# make notebooks    runs the notebooks' scripts and renders them anew; half a minute
# make docs         builds the documentation site into build/docs, warnings as errors; runs its notebooks; about 4 minutes
# make docs-serve   serves the built site on this machine: http://localhost:8000
# make docs-test    drives the built site in headless Chromium (Debian: apt-get install chromium chromium-driver); about 3 minutes
# make figures      draws the figures of the explanations anew; seconds
# make clean        removes the environments, caches and pictures

PYTHON ?= python3
VENV ?= .venv
PEER_VENV ?= .venv-peer
LIBAUC_VENV ?= .venv-libauc
DOCS_VENV ?= .venv-docs
DOCS_PORT ?= 8000
CONSTRAINTS ?= constraints.txt
PYTEST_FLAGS ?=
BENCH_FLAGS ?=
STUDY_FLAGS ?=
COMPILED_FLAGS ?=
# one process per core; tests/conftest.py gives each one thread
PYTEST_WORKERS ?= 2

# What `make check` runs: properties, references, states and modules in eager mode. It leaves out the tests that are named
# after compiling, and tests/compiled, distributed, integrations, examples, transforms, and those of docs/ and benchmarks/.
CHECK := $(filter-out %/test_pool_size.py %/test_elements_transforms.py,$(wildcard tests/contracts/test_*.py)) tests/parity/test_limits.py \
	tests/parity/test_reference.py tests/parity/test_soft_counts.py \
	tests/losses/test_focal_errors.py tests/modules/test_*shell*.py tests/modules/test_warmup*.py \
	tests/test_pytree.py tests/test_queue.py tests/test_schedule.py

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# directories too, so that a removed file counts as a change
SOURCES := pyproject.toml README.md LICENSE $(shell find imbalanced_losses -name __pycache__ -prune -o -print)

.PHONY: demo check test test-compiled test-exhaustive lint suite bench bench-paths bench-distributed notebooks study test-oldest clean docs \
	docs-serve docs-test figures

demo: $(VENV)/.installed
	$(BIN)/python examples/toy_demo.py --plot toy_demo.png

check: lint
	$(BIN)/pytest -q -n $(PYTEST_WORKERS) --dist worksteal -m 'not exhaustive' -k 'not compil' $(PYTEST_FLAGS) $(CHECK)

test: lint
	$(MAKE) --no-print-directory suite PYTEST_FLAGS='-m "not exhaustive" --cov --cov-report=term-missing $(PYTEST_FLAGS)'

test-exhaustive:
	$(MAKE) --no-print-directory suite PYTEST_FLAGS='-m exhaustive $(PYTEST_FLAGS)'

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

suite: $(VENV)/.installed
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_FLAGS)

test-compiled: $(VENV)/.installed
	$(BIN)/python tests/compiled/run.py --jobs $(PYTEST_WORKERS) $(COMPILED_FLAGS)

bench: $(VENV)/.installed $(PEER_VENV)/.installed
	$(BIN)/python benchmarks/run.py --peer $(PEER_VENV)/bin/python $(BENCH_FLAGS)

bench-paths: $(VENV)/.installed
	$(BIN)/python benchmarks/paths.py

bench-distributed: $(VENV)/.installed $(PEER_VENV)/.installed
	$(BIN)/python benchmarks/distributed.py --peer $(PEER_VENV)/bin/python --metric-learning $(PEER_VENV)/bin/python

notebooks: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/render.py

# One thread: two notebooks run at a time.
docs: $(DOCS_VENV)/.installed
	rm -rf build/docs
	OMP_NUM_THREADS=1 $(DOCS_VENV)/bin/sphinx-build -E -W --keep-going -j 2 -q -b html -d build/doctrees docs build/docs
	@echo "built build/docs/index.html"

docs-serve: $(DOCS_VENV)/.installed
	test -f build/docs/index.html || $(MAKE) --no-print-directory docs
	$(DOCS_VENV)/bin/python -m http.server $(DOCS_PORT) --bind localhost --directory build/docs

docs-test: $(DOCS_VENV)/.installed
	test -f build/docs/index.html || $(MAKE) --no-print-directory docs
	$(DOCS_VENV)/bin/pytest -q docs/_tests $(PYTEST_FLAGS)

figures: $(DOCS_VENV)/.installed
	$(DOCS_VENV)/bin/python docs/figures/draw.py

# The dashes: without the environment of a peer package, its rows stay empty.
study: $(VENV)/.installed
	-$(MAKE) --no-print-directory $(PEER_VENV)/.installed
	-$(MAKE) --no-print-directory $(LIBAUC_VENV)/.installed
	PYTHONPATH=benchmarks OMP_NUM_THREADS=1 $(BIN)/python -m study.run \
		--peer $(PEER_VENV)/bin/python --libauc $(LIBAUC_VENV)/bin/python $(STUDY_FLAGS)

test-oldest:
	$(MAKE) --no-print-directory suite VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

# Two stamps: the dependencies are looked at again only when their list changes, the package itself with every source file.
$(VENV)/.dependencies: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet 'hatchling>=1.27'
	$(PIP) install --no-build-isolation --constraint $(CONSTRAINTS) '.[dev]'
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(PIP) install --quiet --no-build-isolation --no-deps --force-reinstall .
	touch $@

# The site's tools need no training framework, and the tests no site: so it has an environment of its own.
$(DOCS_VENV)/.dependencies: pyproject.toml $(CONSTRAINTS)
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet 'hatchling>=1.27'
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install --no-build-isolation --constraint $(CONSTRAINTS) '.[docs]'
	touch $@

$(DOCS_VENV)/.installed: $(DOCS_VENV)/.dependencies $(SOURCES)
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps --force-reinstall .
	touch $@

# An environment of its own: the peer's import name is ours. The other one is for bench-distributed.
$(PEER_VENV)/.installed: $(CONSTRAINTS) Makefile
	test -x $(PEER_VENV)/bin/python || $(PYTHON) -m venv $(PEER_VENV)
	$(PEER_VENV)/bin/python -m pip --disable-pip-version-check install --constraint $(CONSTRAINTS) \
		imbalanced-losses==0.6.0 pytorch-metric-learning==2.9.0
	touch $@

# Without its dependencies: it asks for torchvision, of which there is no build for every machine, and needs it for images only.
$(LIBAUC_VENV)/.installed: $(CONSTRAINTS) Makefile
	test -x $(LIBAUC_VENV)/bin/python || $(PYTHON) -m venv $(LIBAUC_VENV)
	$(LIBAUC_VENV)/bin/python -m pip --disable-pip-version-check install --constraint $(CONSTRAINTS) \
		torch numpy scipy scikit-learn pandas tqdm
	$(LIBAUC_VENV)/bin/python -m pip --disable-pip-version-check install --no-deps libauc==2.0.0
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-libauc .venv-oldest .venv-peer build .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -f toy_demo.png
	find imbalanced_losses tests examples benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} +
