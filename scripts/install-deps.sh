#!/usr/bin/env bash
# Installs the missing packages that Wye needs besides Rust. Quick when none is missing.
#
#   scripts/install-deps.sh run      to build and run Wye: a C and C++ compiler, make, OpenSSL
#   scripts/install-deps.sh test     also to test it: Python with venv, Java and Maven for a real Apache Kafka, kcat,
#                                    Go for an S3 server
#   scripts/install-deps.sh bench    also to compare it with other systems: a Java compiler
#
# Works as root, or with sudo. Without these, or without apt, it prints what to install, and fails.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

missing=()
need() { # need PACKAGE TEST...: the package is missing unless the test succeeds
    local package="$1"
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

need_for_run() {
    # librdkafka, zstd and lz4 are built from their sources; librdkafka takes TLS and SCRAM from OpenSSL.
    need gcc have gcc
    need g++ have g++
    need libc6-dev test -e /usr/include/stdio.h
    need make have make
    need pkg-config have pkg-config
    need libssl-dev test -e /usr/include/openssl/ssl.h
}

need_for_test() {
    need python3 have python3
    need python3-venv python3 -c 'import ensurepip, venv'
    need default-jre-headless java -version
    need maven have mvn
    need openssl have openssl
    # Builds the S3 server of the tests, and an independent Kafka client.
    need golang-go have go
    # An independent Kafka client.
    need kcat have kcat
}

# Prints the prefix that runs a command as root; fails if that needs a password.
as_root() {
    [ "$(id -u)" -eq 0 ] && return
    have sudo || return 1
    if [ -t 0 ]; then echo sudo; else sudo -n true 2>/dev/null && echo "sudo -n"; fi
}

install_missing() {
    local command="apt-get install -y --no-install-recommends ${missing[*]}" root
    have apt-get || fail "please install these packages (Debian names) with the package manager of this system: ${missing[*]}"
    root="$(as_root)" || fail "root is needed. Please run as root: $command"
    say "installing: ${missing[*]}"
    # shellcheck disable=SC2086 # the words of $root and $command are meant to be split
    {
        $root apt-get update -qq </dev/null >&2 || say "apt-get update failed; trying with the existing package lists"
        $root env DEBIAN_FRONTEND=noninteractive $command -qq </dev/null >&2 || fail "cannot install. Please run: $command"
    }
}

have cargo || fail "cargo is missing: install Rust with rustup, see https://rustup.rs"
case "${1:-}" in
    run) need_for_run ;;
    test)
        need_for_run
        need_for_test
        ;;
    bench)
        need_for_run
        need_for_test
        need default-jdk-headless have javac
        ;;
    *)
        say "usage: install-deps.sh run|test|bench"
        exit 2
        ;;
esac
if [ ${#missing[@]} -gt 0 ]; then install_missing; fi
