# The commands of everyday work; `make` lists them. The scripts in scripts/ do the work.

# Build output is outside of the source tree, and shared by all clones of a user.
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/wye
export CARGO_TARGET_DIR ?= $(cache)/target

.PHONY: help demo build test check bench rivals fmt

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## install missing packages, build, and run Wye with a simulated plant and city
	$(CARGO_TARGET_DIR)/release/wye demo

# The whole workspace is selected, so that the tests use the same builds of dependencies.
build: ## install missing packages and build the program
	scripts/install-deps.sh run
	cargo build --locked --release --workspace --bins

test: ## install missing packages and run everything that CI runs
	scripts/gate.sh

check: ## run the checks that run no program: format, spelling, dependencies, lints
	scripts/gate.sh check

bench: ## measure on this machine: memory, load, batch run (compared with DuckDB), requests, freshness, speed layer
	scripts/install-deps.sh test
	cargo build --locked --release --workspace --bins
	cargo bench --locked --workspace --bench whole
	cargo bench --locked --workspace --bench throughput -- arrow 20000000 5
	cargo bench --locked --workspace --bench throughput -- json 5000000 5

rivals: ## compare the speed layer with Flink and Kafka Streams, on one real Apache Kafka (downloads about 500 MB once)
	scripts/install-deps.sh bench
	cargo bench --locked --workspace --bench throughput --no-run
	tests/rivals/speed/run.sh 10000000

fmt: ## format the code
	cargo fmt --all
