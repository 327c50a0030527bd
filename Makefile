# One entry for every chore. `make help` lists them.
#
# Everything is built once, in the dev profile, for `demo` and `test` alike.

PROMPT ?= three strawberries on a yellow background
OUT ?= demo.png
BUNDLE ?= bundles/demo
PYTHON ?= python3
SOAK_MINUTES ?= 30
SOAK_SEED ?=

# A server or a library of your own goes before the fetched ones.
export MUSE_REDIS_SERVER ?= $(CURDIR)/.deps/valkey/valkey-server
export MUSE__RUNTIME__ONNXRUNTIME ?= $(CURDIR)/.deps/onnxruntime/libonnxruntime.so
# Through the environment, so that no shell takes a prompt apart.
export PROMPT OUT

BIN := $(or $(CARGO_TARGET_DIR),target)/debug
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
TEST_PYTHON := $(CURDIR)/.deps/python/bin/python
TRAIN_PYTHON := $(CURDIR)/.deps/python-train/bin/python
FETCH := $(PYTHON) scripts/fetch_deps.py
SUITE := scripts/suite run
# Only the fetched ones are there to be fetched: a variable that names another is left to the script to check.
FETCH_RUNTIME := env $(if $(filter file,$(origin MUSE_REDIS_SERVER)),-u MUSE_REDIS_SERVER) \
  $(if $(filter file,$(origin MUSE__RUNTIME__ONNXRUNTIME)),-u MUSE__RUNTIME__ONNXRUNTIME) $(FETCH) rust onnxruntime valkey
# The runner that shows each test apart, where it is installed.
RUST_TESTS := $(if $(shell command -v cargo-nextest),cargo nextest run --no-fail-fast,cargo test --no-fail-fast --lib --bins --tests)

SUITES := format dependencies protos containers clippy rust reference chart foreign-client

.NOTPARALLEL:
.PHONY: help demo test lint bench bench-all peers soak bundle evaluate test-models clean runtime python build $(SUITES)

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

demo: runtime build ## make a picture with a real local cluster: PROMPT="…" OUT=demo.png BUNDLE=bundles/demo
	@$(BIN)/musectl up --bundle "$(BUNDLE)" --quiet -- $(CURDIR)/$(BIN)/musectl generate "$$PROMPT" --out "$$OUT"

test: runtime python ## everything CI runs
	@scripts/suite begin
	@$(MAKE) --no-print-directory $(SUITES); status=$$?; scripts/suite summary; exit $$status

lint: runtime python format dependencies protos containers clippy ## the checks that run no test

# === the suites of `make test`, in order ===

format:
	@$(SUITE) format cargo fmt --all --check

dependencies: python
	@$(SUITE) dependencies $(TEST_PYTHON) scripts/check_dependencies.py
ifneq ($(shell command -v cargo-deny),)
	@cargo fetch --locked --quiet
	@$(SUITE) cargo-deny cargo deny --offline check --hide-inclusion-graph licenses bans sources
endif

protos: python
	@$(SUITE) protos $(dir $(TEST_PYTHON))buf lint proto

containers: python
	@$(SUITE) containers $(dir $(TEST_PYTHON))hadolint Dockerfile

clippy:
	@$(SUITE) clippy cargo clippy --workspace --all-targets --locked -- -D warnings

# Tests start real services: those must be built before, and cargo builds no other package's programs for a test.
rust: runtime build
	@$(SUITE) rust $(RUST_TESTS) --workspace --locked

reference: python
	@$(SUITE) reference $(TEST_PYTHON) -m pytest -q --rootdir models models/tests/reference models/tests/evaluation

# The services must accept what the chart gives them.
chart: runtime python build
	@$(SUITE) chart env MUSE_BIN=$(abspath $(BIN)) $(TEST_PYTHON) -m pytest -q helm/tests

foreign-client: runtime python build
	@$(SUITE) foreign-client $(BIN)/musectl up --bundle tests/bundles/tiny --quiet \
	  --set worker.hub.progress_interval_ms=1 --set gateway.watch.settle_ms=0 -- $(TEST_PYTHON) -m pytest -q tests/python

# === longer chores ===

bench: BENCH := --brief
bench bench-all: runtime python
	cargo build --release --locked --bins $(addprefix --package ,muse-bench muse-gateway muse-worker muse-encoder-svc musectl)
	cargo bench --locked --package muse-bench
	$(RELEASE)/muse-bench all $(BENCH) --criterion $(dir $(RELEASE))criterion --json $(dir $(RELEASE))bench.json --out docs/performance.md

bench: ## measure on this machine, in some 20 minutes after the build, into docs/performance.md
bench-all: ## the same in more and longer rounds, with a million jobs in the queue: an hour

peers: ## fetch what `make bench` compares with: PyTorch's peers, mosec, BullMQ, Celery (several gigabytes)
	@$(FETCH) python-train python-foreign pytorch-peers python-peers node-peers

soak: runtime build ## what `make test` leaves out; half an hour of faults into docs/reliability.md: SOAK_MINUTES=30 SOAK_SEED=…
	cargo test --workspace --test model --locked -- --ignored --nocapture
	cargo test --workspace --test batch --locked -- --ignored --nocapture
	MUSE_SOAK_MINUTES=$(SOAK_MINUTES) MUSE_FAULT_SEED=$(SOAK_SEED) \
	  cargo test --workspace --test reliability --locked -- --ignored --nocapture

test-models: ## the tests of models/ (fetches PyTorch, and what imported checkpoints are compared with)
	@$(FETCH) python-train python-foreign
	$(TRAIN_PYTHON) -m pytest -q models/tests

bundle: ## train and export the demo bundle, from nothing or FROM=bundles/demo; hours on two cores, see models/README.md
	@$(FETCH) python-train
	scripts/train_bundle $(TRAIN_PYTHON) $(FROM)

evaluate: ## measure a bundle into .train/evaluation/report/: BUNDLE=bundles/demo EVALUATE="--no-sweeps --out DIR"
	@$(FETCH) python-train
	cd models && $(TRAIN_PYTHON) -m muse_models.evaluation --bundle "$(abspath $(BUNDLE))" $(EVALUATE)

clean: ## remove what was built; what was fetched stays (.deps/)
	cargo clean
	rm -rf .muse

# === prerequisites, quiet when they are there ===

runtime:
	@$(FETCH_RUNTIME)

python:
	@$(FETCH) python

build:
	@cargo build --workspace --exclude muse-bench --bins --locked
