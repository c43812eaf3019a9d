# make help lists what there is. Every target sets up what it needs first; a second run finds it done.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-kafka check quick test bench bench-sources bench-views bench-policies bench-share lint gate clean distclean
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)

# The venv's own programs, by path: nothing depends on an activated shell.
BIN := .venv/bin

# Tests wait for deadlines, brokers and processes a lot, so two at a time keep two cores busy. A file is one worker's, in the
# order in which they are named: the training runs, which take longest, first.
JOBS ?= 2
PYTEST := python/scripts/tidy.sh $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

help: ## this list
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## /  \1|/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*## /  \1  /p' $(MAKEFILE_LIST)

setup: ## system packages, Rust build, .venv with the wheel in it (TORCH_INDEX=… for another torch)
	@python/scripts/setup.sh

demo: setup ## train on handwritten digits, or on DATA=folder (SIZE= EPOCHS= MODEL= BATCH=)
	@$(BIN)/python python/scripts/demo.py $(if $(DATA),--data "$(DATA)") $(if $(SIZE),--size $(SIZE)) \
		$(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(MODEL),--model $(MODEL)) $(if $(BATCH),--batch-size $(BATCH))

demo-kafka: setup ## train on a live Kafka stream, kill the trainer, resume: nothing lost, nothing twice (RECORDS= RATE=)
	@$(BIN)/python python/scripts/demo_kafka.py $(if $(RECORDS),--records $(RECORDS)) $(if $(RATE),--rate $(RATE))

check: lint test ## what must pass before a change lands: lint, then every test

quick: setup ## a loop of a minute: unit tests of the crates you touched (CRATES=loader), and the quick Python tests
	@JOBS=$(JOBS) python/scripts/quick.sh $(CRATES)

test: setup ## every test that needs no special hardware and no data from elsewhere (JOBS=2: Python tests at a time)
	python/scripts/tidy.sh cargo test --release --workspace --exclude fuelrail-python
	$(PYTEST) $(wildcard python/tests tests)

gate: setup ## the same tests in their long forms, and the Rust ones once more with overflow checks
	python/scripts/tidy.sh cargo test --profile checked --workspace --exclude fuelrail-python
	FUELRAIL_GATE=1 python/scripts/tidy.sh cargo test --release --workspace --exclude fuelrail-python
	FUELRAIL_GATE=1 $(PYTEST) $(wildcard python/tests tests)

bench: setup ## compare with torch's DataLoader on DATA=folder (default: generated photographs), into build/bench
	cargo build --release --quiet -p fuelrail-benches
	$(BIN)/python benches/compare.py $(if $(DATA),--data "$(DATA)") $(BENCH_ARGS)

bench-sources: setup ## the same photographs in every kind of source; BENCH_ARGS=--cold measures a cold disk
	$(BIN)/python benches/sources.py $(if $(DATA),--data "$(DATA)") $(BENCH_ARGS)

bench-views: setup ## ten views of a photograph beside one, and beside torchvision and DALI, in CPU time
	cargo build --release --quiet -p fuelrail-benches
	$(BIN)/python benches/views.py $(if $(DATA),--data "$(DATA)") $(BENCH_ARGS)

bench-policies: setup ## RandAugment and other policies beside torchvision's, in CPU time
	cargo build --release --quiet -p fuelrail-benches
	$(BIN)/python benches/policies.py $(if $(DATA),--data "$(DATA)") $(BENCH_ARGS)

bench-share: setup ## four clients on one decode beside one alone, in CPU time
	$(BIN)/python benches/share.py $(if $(DATA),--data "$(DATA)") $(BENCH_ARGS)

lint: setup ## formatting, clippy, ruff, types, and the stubs against the compiled module
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --quiet --no-deps --workspace --exclude fuelrail-python
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict python/fuelrail
	$(BIN)/stubtest fuelrail._native

clean: ## what was built; .venv stays (make distclean removes it too)
	rm -rf build python/fuelrail/_bin .pytest_cache .mypy_cache .ruff_cache
	cargo clean

distclean: clean ## everything that is not in the repository's history
	rm -rf .venv
