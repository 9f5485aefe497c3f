# Two commands on a fresh machine: `make demo` and `make test`. Needs Python 3.11 to 3.13 and make, no more.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Packages in JavaScript, for tests. Without npm, those tests are skipped.
NODE   := $(if $(shell command -v npm),tests/node/node_modules)

# MNIST that lies beside the checkout is used where nothing else is set.
ifneq ($(wildcard ../shared/mnist),)
export LABELMILL_MNIST_DIR ?= $(abspath ../shared/mnist)
endif

.PHONY: install demo test test-all test-compose mutants soak lint docs screenshots format bench lock alerts release clean

install: $(STAMP)

# The stamp is newer than what it was made from; a half-made environment has none and is made again.
$(STAMP): requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

tests/node/node_modules: tests/node/package-lock.json
	npm ci --prefix tests/node --ignore-scripts --no-audit --no-fund --loglevel error
	touch $@

demo: install
	@$(BIN)/labelmill demo

# Most tests wait for other processes, so three at a time keep two cores busy. A process that has run out of tests takes
# some of another's.
PYTEST = $(BIN)/python -m pytest --numprocesses 3 --dist worksteal

# The fast level, for every change: tests/levels.py says what belongs to it.
test: install $(NODE)
	$(PYTEST) --fast

# Everything. The deployment can be tested only if a Docker engine runs.
test-all: install $(NODE)
	$(PYTEST)
	@if docker info >/dev/null 2>&1; then $(MAKE) test-compose; \
	else echo "no Docker engine runs here: the tests of the deployment (make test-compose) were left out"; fi

# The deployed form, with real containers. Needs a Docker engine and some 15 minutes.
test-compose: install
	$(BIN)/python -m pytest tests/compose

# Mutation testing of the ledger and of prediction: do the tests notice a change of the code? Takes hours; ONLY names
# one module or function. `mutmut show NAME` prints a mutant that survived.
mutants: install
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/mutants.txt
	rm -rf mutants
	$(BIN)/mutmut run $(if $(ONLY),'$(ONLY)')
	$(BIN)/mutmut results

# The long counts of every fault, in about an hour; what came of them goes into benchmarks/results/soak.md.
soak: install
	$(PYTEST) tests/faults -o faulthandler_timeout=0 --soak --soak-report benchmarks/results/soak.md

lint: install docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in site/: a warning, a broken link or anchor is an error. It needs no network, neither here nor in the browser.
docs: install
	$(BIN)/sphinx-build --quiet --fail-on-warning --fresh-env --doctree-dir $(VENV)/.doctrees docs site

# The pictures of the pages in the documentation. Needs Chromium, its driver and MNIST.
screenshots: install
	$(BIN)/python -m tests.screenshots docs/images

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks

# Pins: hashes and versions, no addresses. For all of Python 3.11 to 3.13 on Linux and macOS.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
          --no-header pyproject.toml
# CUDA is for the image with a GPU alone: it is as large as all the rest.
lock: install
	$(COMPILE) $(foreach extra,worker server local postgres parquet demo otel s3,--extra $(extra)) --group dev -o requirements/dev.txt
	$(COMPILE) --extra postgres --extra otel --extra s3 -o requirements/producer.txt --constraints requirements/dev.txt
	$(COMPILE) --extra postgres --extra otel --extra s3 --extra server -o requirements/api.txt --constraints requirements/dev.txt
	$(COMPILE) --extra postgres --extra otel --extra s3 --extra worker -o requirements/worker.txt --constraints requirements/dev.txt
	$(COMPILE) --extra postgres --extra otel --extra s3 --extra slim -o requirements/worker-slim.txt --constraints requirements/dev.txt
	$(COMPILE) --extra postgres --extra otel --extra s3 --extra worker --extra gpu -o requirements/worker-gpu.txt \
	  --constraints requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --group build -o requirements/build.txt --constraints requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --group mutants -o requirements/mutants.txt --constraints requirements/dev.txt

# The alerts for Kubernetes, from those for Prometheus alone: everything below `spec:`.
RULE := deploy/kubernetes/components/prometheus/alerts.yaml
alerts:
	sed '/^spec:/q' $(RULE) >$(RULE).new
	sed -n '/^groups:/,$$p' deploy/monitoring/alerts.yml | sed 's/^./  &/' >>$(RULE).new
	mv $(RULE).new $(RULE)

# Make dist/: a wheel that knows its revision, the pins, and the checksums of both. Tag the commit v<version> first.
REVISION = $(shell git rev-parse --short=12 HEAD)$(shell git diff --quiet HEAD || echo -modified)
release: install
	rm -rf dist
	mkdir dist
	printf '%s' '$(REVISION)' > labelmill/revision.txt
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist . ; \
	  status=$$?; rm labelmill/revision.txt; exit $$status
	cp requirements/producer.txt requirements/api.txt requirements/worker.txt requirements/worker-slim.txt \
	  requirements/worker-gpu.txt dist/
	cd dist && sha256sum -- * > SHA256SUMS
	@echo "dist/ has what to publish; check it with: cd dist && sha256sum --check SHA256SUMS"

clean:
	rm -rf $(VENV) tests/node/node_modules site mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis
