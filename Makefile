# Everything a developer or a newcomer needs; `make help` lists it.
#
# Downloads and build products live in one directory outside the checkout, so that a fresh clone builds warm.
CACHE := $(or $(STEPWELL_CACHE),$(HOME)/.cache/stepwell)
export STEPWELL_CACHE := $(CACHE)
export CARGO_TARGET_DIR ?= $(CACHE)/target
BIN := $(CARGO_TARGET_DIR)/release
# Guests are workspaces of their own, with their own flags and target directory.
GUEST_TARGET := $(CACHE)/guest-target
export STEPWELL_GUESTS := $(GUEST_TARGET)/stepwell
# `embedded`, or `real`: PostgreSQL, Redis and Apache Kafka, started by the demo itself.
SERVICES ?= embedded
# What `make bench` measures: `release`, or `dist`, the slowly built profile of images. BENCH: options for it, or one row of it
# (`cold-start`, `upload`, `idle`, `storm`, `neighbours`, `density`).
PROFILE ?= release
BENCH ?=
# Options of `make soak`.
SOAK ?=

.PHONY: help demo demo-stop test lint fuzz bench soak setup host guests schema

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup host guests ## read handwritten digits: upload, apply, send 898 scans over HTTP and Kafka (SERVICES=real for real services)
	@if [ "$(SERVICES)" = real ]; then deploy/setup.sh services kafka; fi
	@$(BIN)/stepwell-demo --services $(SERVICES)

demo-stop: ## stop the host that the demo left running
	@$(BIN)/stepwell-demo --stop

test: setup host guests ## all tests, on real PostgreSQL, Redis, Apache Kafka and libtensorflow
	@deploy/setup.sh services kafka pinecone schemathesis
	cargo test --release --workspace --no-fail-fast
	cd plugin-sdk/rust && CARGO_TARGET_DIR=$(GUEST_TARGET) cargo test --workspace
	cd plugins && CARGO_TARGET_DIR=$(GUEST_TARGET) cargo test --workspace

lint: ## formatting, clippy, dependencies
	deploy/lint.sh

fuzz: setup guests ## hostile uploads, documents and filters, FUZZ_SECONDS each (30); the first time builds everything with instrumentation
	@deploy/setup.sh fuzz
	@FUZZ_SECONDS=$(or $(FUZZ_SECONDS),30) tests/fuzz/run.sh

bench: setup host guests ## requests/s, latencies, cold starts, uploads and density beside a native handler and wasmtime serve (PROFILE=dist for images' build, BENCH=--help)
	@deploy/setup.sh wasmtime
	@if [ "$(PROFILE)" != release ]; then cargo build --profile $(PROFILE) -p stepwell -p stepwell-bench; fi
	@$(CARGO_TARGET_DIR)/$(PROFILE)/stepwell-bench $(BENCH)

soak: setup host guests ## random uploads, deploys, kills and load; fails on a wrong answer or a leak (SOAK="--seconds 3600 --seed 1")
	@$(BIN)/stepwell-soak $(SOAK)

setup:
	@deploy/setup.sh packages guest tensorflow

host: ## build the host
	@if [ ! -e $(BIN)/stepwell ]; then echo "building the host: about 13 minutes the first time, seconds from then on" >&2; fi
	cargo build --release --workspace --bins

guests: host ## build the plugins and the tests' guests
	@CARGO_TARGET_DIR=$(GUEST_TARGET) $(BIN)/stepwell build plugins
	@CARGO_TARGET_DIR=$(GUEST_TARGET) $(BIN)/stepwell build tests/guests

schema: ## rewrite docs/pipeline.schema.json
	UPDATE=1 cargo test --release -p stepwell-pipeline schema
