# One vocabulary of tasks, for people and for CI. `make help` lists it.

PYTHON ?= python3.11
BIN := .venv/bin
# The stages of dvc.yaml call `iusp`, and DVC looks for it on the path.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The CPU has as many threads as params.yaml says, whatever the shell says.
unexport OMP_NUM_THREADS
export MLFLOW_DISABLE_TELEMETRY ?= true

.DEFAULT_GOAL := help
.PHONY: help run test test-shared test-executorch test-containers faults lint format mlflow executorch bench \
  bench-science readme lock clean images image-light image-cpu image-cuda image-sizes wheelhouse sbom audit

# `docker build` must have BuildKit.
DOCKER ?= docker

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch stands apart: which build of it (CPU, CUDA, …) fits is for the machine's own pip settings to say, so its hash
# cannot be locked; its version is.
.venv/installed: requirements.lock pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "iusp needs Python 3.11: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.in)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	touch $@

.venv/installed-executorch: .venv/installed requirements-executorch.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-executorch.lock
	touch $@

# An unpacked archive has no git history; DVC then works without one.
.dvc/config.local:
	[ -e .git ] || printf '[core]\n    no_scm = true\n' > $@

run: .venv/installed .dvc/config.local ## Audio to registered students: install, dvc repro, show the results
	dvc repro
	iusp results

test: .venv/installed-dev ## Run the tests (under 15 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not shared and not executorch and not containers and not faults" -n 2

test-shared: .venv/installed-dev ## Run the tests that read ../shared/data (real annotations and recordings)
	$(BIN)/python -m pytest -m shared -n 2

test-executorch: .venv/installed-dev .venv/installed-executorch ## Run the tests of the extra executorch
	$(BIN)/python -m pytest -m executorch -n 2

test-containers: .venv/installed-dev .venv/installed-executorch ## Run the tests in containers (as root with dockerd, or with DOCKER_HOST)
	$(BIN)/python -m pytest -m containers

faults: .venv/installed-dev ## Kill, damage, disconnect and race; write the table of docs/faults.md
	$(BIN)/python -m pytest tests/faults -n 2 --write-page

lint: .venv/installed-dev ## Check style, types and import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: .venv/installed-dev ## Put the code into its format
	ruff check --fix .
	ruff format .

mlflow: .venv/installed ## Show runs and registered models in a browser, on loopback only
	mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///mlflow.db

executorch: .venv/installed-executorch ## Install the extra for `iusp executorch`

bench: .venv/installed-dev ## Measure speed, simulate drift; write docs/performance.md and docs/release.md
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.drift

bench-science: .venv/installed ## Compare all methods, also on DATA=<recordings>; write docs/results.md, docs/methods.md
	$(BIN)/python -m benchmarks.science $(if $(DATA),--recordings $(DATA)) $(if $(QUICK),--quick)

readme: run ## Write the figures of README.md
	$(BIN)/python -m benchmarks.results

images: image-light image-cpu ## Build the pipeline's images; image-cuda is cpu with torch's CUDA build

image-light image-cpu image-cuda: image-%:
	DOCKER_BUILDKIT=1 $(DOCKER) build --file docker/Dockerfile --target $* --tag iusp:$* $(BUILD) \
	  --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' iusp/__init__.py) \
	  --build-arg REVISION=$$(git rev-parse HEAD) .

image-sizes: ## Write docs/images.md; BASE_IMAGE=… names what they were built on
	docker/sizes "$(or $(BASE_IMAGE),python:3.11-slim-bookworm)" iusp:light iusp:cpu > docs/images.md

wheelhouse: .venv/installed ## Download what the images hold, for builds without an index
	docker/fill-wheelhouse

sbom: .venv/installed-dev .venv/installed-executorch ## Check all licences; write sbom.json: the images' Python packages (CycloneDX)
	$(BIN)/python -m audit sbom sbom.json

audit: sbom ## The same, and look up known vulnerabilities, which needs the network
	$(BIN)/python -m audit vulnerabilities

lock: .venv/installed-dev ## Renew requirements*.lock from requirements*.in
	pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links \
	  --unsafe-package torch --output-file requirements.lock requirements.in
	pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links \
	  --unsafe-package torch --allow-unsafe --output-file requirements-dev.lock requirements-dev.in
	pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links \
	  --unsafe-package torch --allow-unsafe --constraint requirements.lock --constraint requirements-dev.lock \
	  --output-file requirements-executorch.lock requirements-executorch.in

clean: ## Remove everything that the tasks made, but for the environment
	rm -rf data models reports dvc_plots mlruns mlflow.db .dvc/cache .dvc/tmp .pytest_cache .mypy_cache .ruff_cache .hypothesis
