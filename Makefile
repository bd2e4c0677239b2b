# Every command of a day here, each creating what it needs.
# Assumed on the machine: Python 3.11 or newer, cargo, make, a C linker. Nothing else.
# Another interpreter: make test PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMPS := $(VENV)/.stamps

# pip and cargo must not depend on how the caller's shell is set up.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX RUSTFLAGS
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYO3_PYTHON := $(CURDIR)/$(PY)

# What the extension is made from. A change in any of these rebuilds it.
RUST_SOURCES := $(shell find rust/core rust/bind -name '*.rs' -o -name '*.md' -o -name 'Cargo.toml')
EXTENSION_INPUTS := Cargo.toml Cargo.lock pyproject.toml $(RUST_SOURCES)

# Crash states are enumerated, so tests run optimised, with assertions and overflow checks on.
RUST_TESTS := cargo test --locked --quiet --profile fast --workspace --exclude millrace-bind --exclude millrace-benches
PYTEST_JOBS ?= 2
TORTURE_SECONDS ?= 600
DEMO_ARGS ?=
BENCH_ARGS ?=

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

## ---- what a user runs

.PHONY: demo
demo: build ## Appends from hundreds of tasks, kills its own worker, recovers, verifies every record
	@$(BIN)/millrace demo $(DEMO_ARGS)

.PHONY: test
test: lint test-rust loom stubtest test-python test-abi3 ## Everything that must be green: lints, Rust, loom, stubs, Python
	@echo "make test: all green"

.PHONY: bench
bench: build-bench ## All benchmarks with the peers; one report in benches/report
	@$(PY) benches/python/run.py $(BENCH_ARGS)
	@cargo xtask figures
	@$(PY) benches/python/timers.py
	@cargo build --locked --quiet --release --package millrace-benches --bin expire
	@$(PY) benches/python/files.py
	@$(PY) benches/python/epoch.py
	@cargo bench --locked --package millrace-benches --bench ring --bench wheel
	@$(MAKE) --no-print-directory bench-left-out

.PHONY: bench-files
bench-files: build-bench ## Files and sockets through the I/O engine against fio, caio, aiofiles, threads and plain calls
	@cargo build --locked --quiet --release --package millrace-benches --bin expire
	@$(PY) benches/python/files.py $(BENCH_ARGS)

.PHONY: bench-names
bench-names: build-bench ## Opening, looking and closing through the I/O engine, and what the ring would do about names
	@$(PY) benches/python/files.py --names --out build/bench-names $(BENCH_ARGS)
	@cargo run --locked --quiet --release --package millrace-benches --bin left_out -- --names \
	  --work $(CURDIR)/target --out $(CURDIR)/build/bench-names/names.md $(BENCH_ARGS)

.PHONY: bench-left-out
bench-left-out: ## What the ring offers and the engine does not use, each against the way it takes
	@cargo run --locked --quiet --release --package millrace-benches --bin left_out -- \
	  --work $(CURDIR)/target --out $(CURDIR)/benches/report/left-out.md $(BENCH_ARGS)

.PHONY: bench-extents
bench-extents: build ## What a log's files should be made of and be written from; BENCH_ARGS=--quick for less
	@$(PY) benches/python/extents.py --work $(CURDIR)/target $(BENCH_ARGS)

.PHONY: bench-timers
bench-timers: build-bench ## The timeout wheel against the loop's own timers, and its core with criterion
	@$(PY) benches/python/timers.py $(BENCH_ARGS)
	@cargo bench --locked --package millrace-benches --bench wheel

.PHONY: bench-ways
bench-ways: build ## A call that only comes back: by the port of the loop, and by pyo3-async-runtimes
	@$(PY) benches/python/ways.py $(BENCH_ARGS)

.PHONY: bench-epoch
bench-epoch: build ## Deferred cleanup: what it saves, what it costs, and its peers
	@$(PY) benches/python/epoch.py $(BENCH_ARGS)

.PHONY: bench-quick
bench-quick: build-bench ## The same cells, shorter: under five minutes, into build/bench-quick
	@mkdir -p build/bench-quick
	@$(PY) benches/python/run.py --quick --out build/bench-quick $(BENCH_ARGS)

.PHONY: torture
torture: build ## Crash states, damage, storms and kill points for TORTURE_SECONDS (default 600), then every planted bug
	@MILLRACE_TORTURE_SECONDS=$(TORTURE_SECONDS) cargo test --locked --quiet --profile fast \
	  --package millrace-tests -- --ignored --nocapture
	@MILLRACE_TORTURE_SECONDS=$(TORTURE_SECONDS) $(BIN)/pytest -m torture --capture no --verbose --timeout 0 \
	  -p no:cacheprovider
	@$(MAKE) --no-print-directory mutants
	@echo "make torture: all held"

.PHONY: mutants
mutants: ## Plant each bug of rust/mutants.toml and require its test to fail
	@cargo xtask mutants $(MUTANTS)

.PHONY: wheel
wheel: $(STAMPS)/tools ## Build both wheels into dist/: for this Python, and for every Python
	@$(BIN)/maturin build --release --locked --out dist
	@$(BIN)/maturin build --release --locked --out dist --no-default-features --interpreter $(PY)

.PHONY: clean
clean: ## Remove everything that was built, the virtual environment too
	rm -rf $(VENV) target dist build python/millrace/*.so
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

## ---- the steps of `make test`, each usable alone

.PHONY: build
build: $(STAMPS)/extension ## Create .venv and build the extension into it

.PHONY: lint
lint: $(STAMPS)/tools ## Format, clippy, ruff, mypy, pyright and the house rules
	@if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; \
	  else echo "SKIPPED: rustfmt is not installed (rustup component add rustfmt)"; fi
	@if cargo clippy --version >/dev/null 2>&1; then \
	    cargo clippy --locked --quiet --workspace --all-targets -- --deny warnings; \
	  else echo "SKIPPED: clippy is not installed (rustup component add clippy)"; fi
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/pyright --warnings
	@cargo xtask tidy

.PHONY: tidy
tidy: ## The house rules alone: floors, sizes, markers, doors
	@cargo xtask tidy

.PHONY: format
format: $(STAMPS)/tools ## Format Rust and Python
	@cargo fmt --all
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

.PHONY: test-rust
test-rust: $(STAMPS)/tools ## Unit tests, crash states, damage, fault loops
	@$(RUST_TESTS) -- --skip breaks_a_promise
	@cargo test --locked --quiet --profile fast --package millrace-tests --test crash_states -- --nocapture breaks_a_promise

.PHONY: loom
loom: ## Every interleaving of the ring, completion and port models
	@RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-3} \
	  cargo test --locked --quiet --profile fast --package millrace-core --lib loom

.PHONY: stubtest
stubtest: $(STAMPS)/extension ## The stub of the extension against the extension
	@MYPYPATH=python $(PY) -m mypy.stubtest millrace._core --allowlist tests/python/stubtest-allowlist.txt

.PHONY: test-python
test-python: $(STAMPS)/extension ## The Python tests
	@$(BIN)/pytest --numprocesses $(PYTEST_JOBS) --dist loadfile -m "not torture"

.PHONY: test-abi3
test-abi3: $(STAMPS)/tools ## The tests of log, ring and I/O again, on the wheel for every Python
	@rm -rf target/abi3/dist
	@$(BIN)/maturin build --quiet --release --locked --out target/abi3/dist
	@rm -rf target/abi3/site
	@$(PY) -m pip install --quiet --no-deps --target target/abi3/site target/abi3/dist/*.whl
	@PYTHONPATH=target/abi3/site $(PY) -c 'import millrace._core as m; assert "abi3" in m.__file__, m.__file__'
	@PYTHONPATH=target/abi3/site $(BIN)/pytest --numprocesses $(PYTEST_JOBS) --dist loadfile tests/python/log tests/python/ring tests/python/io

.PHONY: lock
lock: $(STAMPS)/venv ## Pin the Python tools anew (asks PyPI)
	@$(PY) -m venv target/uv && target/uv/bin/pip install --quiet uv
	@target/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --upgrade --extra test --extra dev pyproject.toml --output-file requirements/dev.lock
	@target/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --upgrade --constraint requirements/dev.lock --extra bench pyproject.toml --output-file requirements/bench.lock

## ---- stamps

# `python3` may be a shim that only prints where other versions are, and Debian ships a Python
# without venv: a candidate counts only if it runs and can make an environment.
define FIND_PYTHON
for candidate in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3); do \
  if "$$candidate" -c 'import sys, ssl, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
  then echo "$$candidate"; exit 0; fi; \
done; \
{ echo "error: found no Python 3.11 or newer that has venv and ssl"; \
  echo "       tried: $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3)"; \
  echo "       install one (Debian: apt install python3 python3-venv) or name it: make PYTHON=python3.12"; } >&2; \
exit 1
endef

$(STAMPS)/venv:
	@python="$$($(FIND_PYTHON))"; \
	  echo "creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/tools: requirements/dev.lock | $(STAMPS)/venv
	@echo "installing the pinned tools"
	@$(PY) -m pip install --quiet --require-hashes --requirement requirements/dev.lock
	@touch $@

$(STAMPS)/bench: requirements/bench.lock | $(STAMPS)/tools
	@echo "installing the peers of the benchmarks"
	@$(PY) -m pip install --quiet --require-hashes --requirement requirements/bench.lock
	@touch $@

$(STAMPS)/extension: $(EXTENSION_INPUTS) $(STAMPS)/tools
	@echo "building the extension"
	@PIP_QUIET=1 CARGO_TERM_QUIET=true VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --quiet --release --locked --no-default-features
	@touch $@

.PHONY: build-bench
build-bench: $(STAMPS)/extension $(STAMPS)/bench
