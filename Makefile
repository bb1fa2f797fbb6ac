# The only definition of how Vireo is set up, run, checked and tested. See README.md for the two that matter to a user.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := proto/vireo_pb/vireo/v1/vireo.proto proto/vireo_pb/oip/open_inference.proto
SOURCES := serving models schedulers loadtest tests
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install serve down test check fuzz format proto lock train-texthawk2-nano train-texthawk2-nano-verbose train-vdit-nano train-dit-moe-nano train-exvideo-nano clean

help: ## List the targets.
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 28

install: $(STAMP) ## Install everything into .venv (does nothing when it is up to date).

# torch comes first and with its dependencies; the rest is a complete, pinned list, is not resolved again, and every file
# has to have one of its hashes (docs/decisions/0002).
$(STAMP): requirements/cpu.lock pyproject.toml
	@echo "installing into $(VENV) (about two minutes the first time)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/cpu.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

serve: install ## Start the whole system, answer one request of each kind, stay up (Ctrl-C stops it).
	$(BIN)/vireo up

down: install ## Stop the system that is running here.
	$(BIN)/vireo down

# GPU builds of torch bring Triton; elsewhere only the tests need it, whose kernels then run in its interpreter.
$(VENV)/.triton: $(STAMP)
	@$(BIN)/python -c "import triton" 2>/dev/null || \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/triton.lock
	@touch $@

# matplotlib brings Latin letters; the tests of Chinese text need two small fonts, one to train on and one held out.
.cache/fonts/packages/fonts-wqy-%:
	@scripts/fonts.sh $(@F) || echo "$(@F) was not fetched: the tests of Chinese text are skipped" >&2

.cache/chromium/run:
	@scripts/chromium.sh || echo "Chromium was not fetched: the tests of the page are skipped" >&2

test: install $(VENV)/.triton .cache/fonts/packages/fonts-wqy-zenhei .cache/fonts/packages/fonts-wqy-microhei .cache/chromium/run ## Run the tests.
	$(BIN)/python scripts/run_tests.py

check: install ## Formatting, lint, types, import contracts, unused code, generated files.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/unused_code.py
	$(BIN)/python scripts/generate_stubs.py --check

format: install ## Rewrite the sources in the house format.
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

proto: install ## Regenerate the gRPC stubs.
	$(BIN)/python scripts/generate_stubs.py

lock: ## Resolve requirements/cpu.in and the extra gpu into requirements/*.lock, with hashes (needs uv: pip install uv).
	scripts/lock.sh

bench-%: install ## Run one benchmark: bench-early-exit, bench-gateway, bench-chat, bench-attention, ... (docs/benchmarks); bench-all runs each alone.
	$(BIN)/python -m tests.benchmarks.bench_$(subst -,_,$*)

fuzz: install ## Throw bad input at a system of its own for ten minutes: image files, OpenAPI, protobuf messages.
	$(BIN)/python -m tests.fuzz

train-texthawk2-nano: install ## Train the nano chat model from nothing: fonts, rendering, two stages, model card.
	PYTHON=$(BIN)/python bash scripts/train_texthawk2_nano.sh

train-texthawk2-nano-verbose: install ## Train the nano chat model that answers at length, from texthawk2-nano: fonts, training, model card.
	PYTHON=$(BIN)/python bash scripts/train_texthawk2_nano_verbose.sh

train-vdit-nano: install ## Train the nano video model from nothing: autoencoder, judge, teacher, student, model card.
	PYTHON=$(BIN)/python bash scripts/train_vdit_nano.sh

train-dit-moe-nano: install ## Train the nano image model from nothing: autoencoder, judge, transformer, model card.
	$(BIN)/vireo train dit-moe-nano
	$(BIN)/python -m models.training.dit_moe.evaluate models/checkpoints/dit-moe-nano
	$(BIN)/vireo calibrate dit-moe-nano

train-exvideo-nano: install ## Train the nano image-to-video model from nothing: autoencoder, base of 8 frames, extension to 40.
	$(BIN)/vireo train exvideo-nano
	$(BIN)/python -m models.training.exvideo.evaluate models/checkpoints/exvideo-nano
	$(BIN)/vireo calibrate exvideo-nano

clean: ## Remove the environment and everything generated at run time.
	rm -rf $(VENV) .vireo out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
