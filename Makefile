# make help lists the targets.  make up is all that a user needs: the program is built, deployed and run.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON3 ?= /usr/bin/python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PY := $(BIN)/python
PLAYBOOK := ANSIBLE_CONFIG=$(CURDIR)/ansible.cfg $(BIN)/ansible-playbook
INVENTORY ?= inventory
# More arguments of ansible-playbook: make up ARGS="--check --diff"
ARGS ?=
# More arguments of pytest: make test PYTEST_ARGS="-k lease"
PYTEST_ARGS ?=
# Version of make packages; empty: that of the tree (daemons/vstor/__init__.py).
VERSION ?=
# Secret key of make repo, armoured; made when it is not there.
REPO_KEY ?= ~/.config/vstor/repository-key.asc
# Seconds of make fuzz.
FUZZ_S ?= 60
JOBS ?= $(shell nproc)
BENCH_ARGS ?= vstor local
# Seconds of faults of make chaos.
CHAOS_S ?= 60
# Seconds of make simulate with fresh seeds; SEED=N shows one history.
SIMULATE_S ?= 60

PROGRAM_SOURCES := $(shell find daemons native -type f \( -name '*.py' -o -name '*.[ch]' -o -name '*.toml' -o -name '*.json' \
	-o -name '*.cfg' -o -name '*.html' -o -name '*.service' \
	-o -name vstor-service -o -name Makefile \) -not -path '*/build/*' -not -path '*/tests/*' -not -path '*/docs/*' \
	-not -path '*.egg-info/*' 2>/dev/null)
# Minutes each: make test-ha.
HA_TESTS := $(addprefix tests/cluster/test_,mds_ha.py mds_partition.py survivor.py)
PYTEST := PYTHONPATH=$(CURDIR)/daemons $(PY) -m pytest
RUFF_PATHS := daemons native/wire native/cffi tests .make packaging collections/ansible_collections/vstor/storage/plugins molecule

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

# --- setup --------------------------------------------------------------------------------------------------

build/stamp-up: packages-debian.txt .make/setup.sh
	@.make/setup.sh up
	@mkdir -p build && touch $@

build/stamp-dev: packages-debian.txt .make/setup.sh
	@.make/setup.sh up dev
	@mkdir -p build && touch $@

$(VENV)/stamp-up: requirements.txt | build/stamp-up
	@test -x $(PY) || { echo "setup: virtual environment in $(VENV)"; $(PYTHON3) -m venv --clear $(VENV); }
	@echo "setup: Python packages of requirements.txt"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/stamp-dev: requirements-dev.txt $(VENV)/stamp-up | build/stamp-dev
	@echo "setup: Python packages of requirements-dev.txt"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c requirements.txt
	@touch $@

.PHONY: setup
setup: $(VENV)/stamp-dev ## packages and .venv for building, testing and linting (root on the first run)

# --- build --------------------------------------------------------------------------------------------------

build/stamp-native: $(PROGRAM_SOURCES) $(VENV)/stamp-up
	@echo "native: building the C engine"
	@$(MAKE) -s -C native -j$(JOBS) PY=$(PY) ext
	@mkdir -p build && touch $@

.PHONY: native
native: build/stamp-native ## the C engine, and its Python module in place

build/wheelhouse.id: $(PROGRAM_SOURCES) requirements.txt .make/wheelhouse.sh .make/wheelhouse_id.py $(VENV)/stamp-up
	@echo "wheel: building the program and collecting its dependencies"
	@.make/wheelhouse.sh $(PY)

.PHONY: wheel
wheel: build/wheelhouse.id ## what is deployed: wheels of the program and of its dependencies

.PHONY: packages
packages: build/wheelhouse.id $(VENV)/stamp-dev ## deb and rpm packages in build/packages, of the version VERSION
	@echo "packages: deb and rpm in build/packages"
	@$(PY) packaging/build.py build/wheelhouse build/packages $(VERSION)

.PHONY: repo
repo: packages ## signed apt and yum repository in build/repo, with the key REPO_KEY; AIRGAP=1: with Debian's packages that it needs
	@echo "repo: signed repository in build/repo"
	@$(PY) packaging/repo.py build/packages build/repo $(REPO_KEY) $(if $(AIRGAP),--with-dependencies)

.PHONY: collection
collection: $(VENV)/stamp-up ## the Ansible collection vstor.storage, with roles and playbooks, in build/collection
	@$(PY) packaging/collection.py build/collection && ls build/collection/*.tar.gz

.PHONY: sanity
sanity: collection $(VENV)/stamp-dev ## ansible-test sanity on the collection; SANITY_ARGS="--test pylint"
	@$(PY) packaging/sanity.py $(SANITY_ARGS)

.PHONY: gen
gen: $(VENV)/stamp-up ## code generated from native/wire/protocol.toml
	@$(PY) native/wire/generate.py

.PHONY: gen-check
gen-check: $(VENV)/stamp-up ## fails when generated code or documents are not up to date
	@$(PY) native/wire/generate.py --check
	@$(PY) .make/role_docs.py --check

.PHONY: docs
docs: $(VENV)/stamp-up ## README of each role, from its argument specs
	@$(PY) .make/role_docs.py

# --- the cluster of this machine ------------------------------------------------------------------------------

.PHONY: up
up: $(VENV)/stamp-up build/wheelhouse.id ## build, deploy and run the cluster of inventory/
	@$(PLAYBOOK) site.yml -i $(INVENTORY) $(ARGS)

.PHONY: down
down: $(VENV)/stamp-up ## unmount and stop everything; data stays
	@$(PLAYBOOK) playbooks/shutdown.yml -i $(INVENTORY) $(ARGS)

.PHONY: purge
purge: $(VENV)/stamp-up ## destroy the cluster CLUSTER with the id ID, with all its data
	@$(PLAYBOOK) playbooks/purge.yml -i $(INVENTORY) $(if $(CLUSTER),-e vstor_purge_cluster=$(CLUSTER)) \
		$(if $(ID),-e vstor_purge_cluster_id=$(ID)) $(ARGS)

# --- tests --------------------------------------------------------------------------------------------------

.PHONY: test-c
test-c: build/stamp-native build/stamp-dev ## tests of the C code
	@$(MAKE) -C native -j$(JOBS) test

.PHONY: test
test: $(VENV)/stamp-dev build/stamp-native test-c ## all fast tests; brings what it needs, leaves /mnt/vstor alone
	@$(PYTEST) -n $(JOBS) tests/unit $(PYTEST_ARGS)
	@$(PYTEST) $(wildcard tests/component tests/cluster) $(addprefix --ignore=,$(HA_TESTS)) $(PYTEST_ARGS)

.PHONY: test-ha
test-ha: $(VENV)/stamp-dev build/stamp-native ## the longer tests of several MDSs: hosts lost, members leave, quorum lost, one survivor. Ten minutes
	@$(PYTEST) $(HA_TESTS) $(PYTEST_ARGS)

.PHONY: posix
posix: $(VENV)/stamp-dev build/stamp-native ## POSIX conformance, all cases, on a mount of a cluster of its own
	@VSTOR_POSIX_EVERY=1 $(PYTEST) --timeout 1800 tests/cluster/test_posix.py $(PYTEST_ARGS)

.PHONY: exercise
exercise: $(VENV)/stamp-dev build/stamp-native ## file system exercisers on mounts, long: fsx, names, tar, stress-ng, dbench, bonnie++, fio, pgbench (VSTOR_EXERCISE=2: twice as long)
	@.make/setup.sh exercise
	@$(PYTEST) --timeout 3600 tests/exercise $(PYTEST_ARGS)

.PHONY: simulate
simulate: $(VENV)/stamp-dev build/stamp-native ## simulated histories under faults, SIMULATE_S seconds; SEED=N: that one, with its trace
	@PYTHONHASHSEED=0 PYTHONPATH=$(CURDIR)/daemons $(PY) -m tests.simulate $(if $(SEED),--seed $(SEED),--seconds $(SIMULATE_S) --jobs $(JOBS))

.PHONY: chaos
chaos: $(VENV)/stamp-dev build/stamp-native ## faults against a real cluster for CHAOS_S seconds; SEED=N: that schedule; last result: build/chaos/result.json
	@PYTHONPATH=$(CURDIR)/daemons $(PY) -m tests.chaos --seconds $(CHAOS_S) $(if $(SEED),--seed $(SEED)) $(CHAOS_ARGS)

.PHONY: test-packages
test-packages: build/wheelhouse.id $(VENV)/stamp-dev ## the packages and the repository, installed in a Debian 12 of its own (root)
	@$(PYTEST) --timeout 300 tests/packaging $(PYTEST_ARGS)

.PHONY: mutants
mutants: $(VENV)/stamp-dev build/stamp-native ## the product broken on purpose, a line at a time: tests must notice; M="name ...", MUTANTS_ARGS=--quick
	@$(PY) tests/mutants/run.py $(MUTANTS_ARGS) $(M)

.PHONY: asan
asan: $(VENV)/stamp-dev ## C tests under address and undefined-behaviour sanitizers
	@$(MAKE) -C native -j$(JOBS) asan

.PHONY: fuzz
fuzz: $(VENV)/stamp-dev ## fuzz the frame parser for FUZZ_S seconds
	@$(MAKE) -C native -j$(JOBS) FUZZ_SECONDS=$(FUZZ_S) fuzz

.PHONY: bench
bench: $(VENV)/stamp-dev build/stamp-native ## the benchmark harness beside its peers; BENCH_ARGS are those of tests/bench/harness/bench.py
	@mkdir -p build && PYTHON=$(PY) tests/bench/run.sh build/bench-$$(date +%Y%m%dT%H%M%S).jsonl $(BENCH_ARGS)

.PHONY: bench-smoke
bench-smoke: $(VENV)/stamp-dev build/stamp-native ## one short workload of the benchmark harness on vstor
	@mkdir -p build && rm -f build/bench-smoke.jsonl && PYTHON=$(PY) tests/bench/run.sh build/bench-smoke.jsonl vstor \
		--workloads rand_write_4k_qd1 --variants direct --runs 1 --runtime 2 --meta-runs 0 --kill-runs 0

.PHONY: molecule
molecule: $(VENV)/stamp-dev ## scenario S (default: default); all but that on hosts of the lab (root)
	@PATH=$(BIN):$$PATH ANSIBLE_CONFIG=$(CURDIR)/ansible.cfg $(BIN)/molecule test -s $(or $(S),default) $(MOLECULE_ARGS)

.PHONY: molecule-all
molecule-all: $(VENV)/stamp-dev ## every scenario, or those of S, one after the other (an hour or two); docs/molecule-results.md has what came out
	@PATH=$(BIN):$$PATH ANSIBLE_CONFIG=$(CURDIR)/ansible.cfg $(PY) molecule/run_all.py docs/molecule-results.md $(S)

# --- lint ---------------------------------------------------------------------------------------------------

.PHONY: lint lint-python lint-c lint-ansible
lint: lint-python lint-c lint-ansible ## every check of style and types

lint-python: $(VENV)/stamp-dev
	@echo "lint: ruff" && $(BIN)/ruff check $(RUFF_PATHS) && $(BIN)/ruff format --check $(RUFF_PATHS)
	@echo "lint: mypy" && $(BIN)/mypy

lint-c: build/stamp-dev
	@echo "lint: clang-format" && $(MAKE) -C native format-check
	@echo "lint: warnings of gcc and clang" && $(MAKE) -s -C native -j$(JOBS) all && $(MAKE) -s -C native -j$(JOBS) B=build/clang CC=clang all

lint-ansible: $(VENV)/stamp-dev
	@echo "lint: yamllint" && $(BIN)/yamllint --strict .
	@echo "lint: changelog fragments" && cd collections/ansible_collections/vstor/storage && $(BIN)/antsibull-changelog lint
	@echo "lint: ansible-lint" && PATH=$(BIN):$$PATH ANSIBLE_CONFIG=$(CURDIR)/ansible.cfg $(BIN)/ansible-lint --offline -q
	@echo "lint: argument specs and documents of the roles" && $(PY) .make/role_docs.py --check
	@for f in .make/*.sh .ci/run tests/deployment/*.sh tests/bench/*.sh; do bash -n $$f; done

# --- house-keeping ------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove everything that was built, and .venv
	@if [[ -d native && -f native/Makefile ]]; then $(MAKE) -C native clean; fi
	@rm -rf build daemons/build daemons/*.egg-info $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .ansible .cache
	@find daemons tests .make -name __pycache__ -type d -prune -exec rm -rf {} +
	@find daemons -name '*.so' -delete
