# The commands of everyday work. `make` alone lists them. The work itself is done by scripts/.

# Built things are kept outside the source tree, shared by all clones of one user.
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/wye
export CARGO_TARGET_DIR ?= $(cache)/target

.PHONY: help demo build test check bench rivals fmt

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## install what is missing, build, and run Wye with a simulated plant and city
	$(CARGO_TARGET_DIR)/release/wye demo

# All of the workspace is selected so that the tests find the same dependencies built.
build: ## install what is missing and build the program
	scripts/install-deps.sh run
	cargo build --locked --release --workspace --bins

test: ## install what is missing and run everything that CI runs
	scripts/gate.sh

check: ## the part of the tests that runs no program: format, spelling, dependencies, lints
	scripts/gate.sh check

bench: ## measure this machine: memory, load, batch run (beside DuckDB), requests, freshness, speed layer
	scripts/install-deps.sh test
	cargo build --locked --release --workspace --bins
	cargo bench --locked --workspace --bench whole
	cargo bench --locked --workspace --bench throughput -- arrow 20000000 5
	cargo bench --locked --workspace --bench throughput -- json 5000000 5

rivals: ## measure the speed layer beside Flink and Kafka Streams, on one real Apache Kafka (fetches about 500 MB once)
	scripts/install-deps.sh bench
	cargo bench --locked --workspace --bench throughput --no-run
	tests/rivals/speed/run.sh 10000000

fmt: ## format the code
	cargo fmt --all
