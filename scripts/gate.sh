#!/usr/bin/env bash
# The gate: all checks that a change must pass. `make test` and CI run exactly this.
#
#   scripts/gate.sh          all checks
#   scripts/gate.sh check    only those that run no program: format, spelling, dependencies, lints
#
# Dependencies are built once, in the release profile, for lints, documentation, unit tests, the program and its tests. Every
# cargo command selects the whole workspace, so that features unify in the same way. Our own crates are built twice: by clippy
# with little optimisation, for lints and unit tests, and as for users, for the tests of the program.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$wye_root"

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$wye_cache/target}"
kafka_dir=
s3_dir=
summary=()
current=

# step NAME COMMAND...: runs the command, and measures its time. The first failure ends the gate.
step() {
    local started=$SECONDS
    current="$1"
    shift
    say "== $current"
    "$@" </dev/null
    summary+=("$(printf '%5d s  %s' $((SECONDS - started)) "$current")")
    current=
}

finish() {
    local status=$?
    if [ -n "$kafka_dir" ]; then
        scripts/kafka.sh stop "$kafka_dir" || true
        rm -rf "$kafka_dir"
    fi
    if [ -n "$s3_dir" ]; then
        scripts/s3.sh stop "$s3_dir" || true
        rm -rf "$s3_dir"
    fi
    say
    if [ ${#summary[@]} -gt 0 ]; then printf '%s\n' "${summary[@]}" >&2; fi
    if [ "$status" -eq 0 ]; then
        say "gate passed in $SECONDS s"
    else
        say "gate FAILED${current:+ at: $current}"
    fi
    exit "$status"
}
trap finish EXIT
# After an interrupt, `finish` runs too.
trap 'exit 130' INT
trap 'exit 143' TERM

# by_clippy SUBCOMMAND ARGUMENTS...: runs cargo with clippy as the compiler of our own crates. `cargo clippy` would build all
# dependencies a second time.
by_clippy() {
    RUSTC_WORKSPACE_WRAPPER="$(rustup which clippy-driver)" CLIPPY_ARGS="-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__" \
        cargo --config "$wye_root/scripts/unit-tests.toml" "$@"
}

prepare() {
    scripts/install-deps.sh test
    python="$(scripts/venv.sh)"
    scripts/venv.sh open-tables
    scripts/spark.sh
    tools="$(scripts/tools.sh)"
}

documentation() { RUSTDOC="$wye_root/scripts/rustdoc.sh" cargo test --locked --release --workspace --doc; }

start_kafka() {
    kafka_dir="$(mktemp -d "${TMPDIR:-/tmp}/wye-kafka.XXXXXX")"
    scripts/kafka.sh start "$kafka_dir"
}

start_s3() {
    s3_dir="$(mktemp -d "${TMPDIR:-/tmp}/wye-s3.XXXXXX")"
    scripts/s3.sh start "$s3_dir"
}

static_checks() {
    step "prepare: system packages, Python environment, cargo tools" prepare
    step "format" cargo fmt --all --check
    step "spelling" "$(dirname "$python")/typos"
    step "dependencies: versions, licences, sources" "$tools/cargo-deny" --locked check bans licenses sources
    step "dependencies: unused" "$tools/cargo-machete" --skip-target-dir
    step "lints" by_clippy build --locked --release --workspace --all-targets
}

tests() {
    step "build of the program" cargo build --locked --release --workspace --bins --test gate
    step "documentation and its tests" documentation
    step "start Apache Kafka" start_kafka
    step "start an S3 server" start_s3
    WYE_TEST_KAFKA="$(cat "$kafka_dir/bootstrap")"
    # The certificates and passwords for its listener with TLS.
    WYE_TEST_KAFKA_TLS="$kafka_dir/tls"
    export WYE_TEST_KAFKA WYE_TEST_KAFKA_TLS
    export WYE_TEST_S3="$s3_dir"
    export WYE_TEST_PYTHON="$python"
    step "unit tests" by_clippy test --locked --release --workspace --lib --bins --test seeds
    step "tests of the program" cargo test --locked --release --workspace --test gate
}

case "${1:-all}" in
    check) static_checks ;;
    all)
        static_checks
        tests
        ;;
    *) fail "usage: gate.sh [check]" ;;
esac
