# The tasks of the project, for people and for CI. `make help` lists them.

# The interpreter of the environment. Unset: the first one that fits, as scripts/find-python has it.
PYTHON ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The stages of dvc.yaml call `iusp`, which DVC finds on the path.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# params.yaml alone sets the number of CPU threads.
unexport OMP_NUM_THREADS
export MLFLOW_DISABLE_TELEMETRY ?= true
# Port of `make mlflow`.
PORT ?= 5000
# QUICK=1: a small pipeline in a folder of its own, with an MLflow database of its own.
FOLDER := $(if $(QUICK),quick,.)
ifdef QUICK
unexport MLFLOW_TRACKING_URI
endif

# Tests run in two processes. NEEDS_NOTHING leaves out tests that need more than .venv, or break things on purpose.
PYTEST := $(BIN)/python -m pytest -n 2
NEEDS_NOTHING := not shared and not executorch and not containers and not faults
# FULL=1: the fault suite tries everything instead of a sample.
export FULL

.DEFAULT_GOAL := help
.PHONY: help run check test test-all test-shared test-executorch test-containers faults lint format mlflow executorch bench \
  bench-science readme lock docs clean distclean images image-light image-cpu image-cuda image-sizes wheelhouse sbom audit

# `docker build` must have BuildKit.
DOCKER ?= docker

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The lock holds no hash of torch, because the right build (CPU, CUDA, ROCm) depends on the machine. pip's settings choose it.
.venv/installed: requirements.lock pyproject.toml scripts/find-python
	@python=$$(scripts/find-python $(PYTHON)) && scripts/announce "$$python" && "$$python" -m venv $(if $(PYTHON),--clear) .venv
	$(PIP) --require-hashes --no-deps -r requirements.lock
	$(PIP) $$(grep '^torch==' requirements.in)
	$(PIP) --no-build-isolation --no-deps --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(PIP) --require-hashes --no-deps -r requirements-dev.lock
	touch $@

.venv/installed-executorch: .venv/installed requirements-executorch.lock
	$(PIP) --require-hashes --no-deps -r requirements-executorch.lock
	touch $@

# An unpacked archive has no git history; DVC then works without one.
.dvc/config.local:
	[ -e .git ] || printf '[core]\n    no_scm = true\n' > $@

run: .venv/installed .dvc/config.local ## Install, run the whole pipeline, show the results. QUICK=1: few clips, about 2 minutes, in quick/
	$(if $(QUICK),$(BIN)/python -m scripts.quick)
	cd $(FOLDER) && dvc repro
	cd $(FOLDER) && iusp results

check: lint ## Check style, types, contracts, and run the unit tests (under a minute)
	$(PYTEST) -m "$(NEEDS_NOTHING) and not integration and not slow"

test: .venv/installed-dev ## Run the tests to run before a pull request (under 5 minutes on 2 cores)
	$(PYTEST) -m "$(NEEDS_NOTHING) and not slow"

test-all: test .venv/installed-executorch ## Run every test that needs neither ../shared nor containers; FULL=1: no sampling
	$(PYTEST) -m "(slow or faults or executorch) and not shared and not containers"

test-shared: .venv/installed-dev ## Run the tests that read ../shared/data (real annotations and recordings)
	$(PYTEST) -m shared

test-executorch: .venv/installed-dev .venv/installed-executorch ## Run the tests of the extra executorch
	$(PYTEST) -m executorch

test-containers: .venv/installed-dev .venv/installed-executorch ## Run the tests in containers (as root with dockerd, or with DOCKER_HOST)
	$(BIN)/python -m pytest -m containers

faults: .venv/installed-dev ## Kill, damage, disconnect and race: a sample. FULL=1: everything, and write docs/faults.md
	$(PYTEST) tests/faults $(if $(FULL),--write-page)

lint: .venv/installed-dev ## Check style, types and import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: .venv/installed-dev ## Put the code into its format
	ruff check --fix .
	ruff format .

mlflow: .venv/installed ## Show runs and models in a browser, on this machine only. PORT=5001; QUICK=1: those of quick/
	cd $(FOLDER) && PYTHONPATH=$(CURDIR) python -m scripts.mlflow_server $(PORT)

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

docs: .venv/installed-dev ## Write the site to site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# pyproject.toml's [tool.uv] makes one lock for all Python versions and platforms. Later locks follow earlier ones.
lock: .venv/installed-dev ## Renew requirements*.lock from requirements*.in
	uv pip compile --quiet --upgrade --output-file requirements.lock requirements.in
	uv pip compile --quiet --upgrade --output-file requirements-dev.lock requirements-dev.in
	uv pip compile --quiet --upgrade --constraint requirements.lock --constraint requirements-dev.lock \
	  --output-file requirements-executorch.lock requirements-executorch.in

clean: ## Remove what the tasks wrote, except the environment and MLflow's runs and registry
	rm -rf data models reports dvc_plots quick site sbom.json .dvc/cache .dvc/tmp \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

distclean: ## Ask, then also remove the environment, and MLflow's runs, registry and promotion history
	@printf 'Delete all MLflow runs, registered models and their promotion history (mlflow.db, mlruns), and .venv? [y/N] '; \
	  read -r answer; [ "$$answer" = y ] || { echo 'Nothing was deleted.'; exit 1; }
	$(MAKE) clean
	rm -rf mlflow.db* mlruns mlartifacts kubeflow .venv
