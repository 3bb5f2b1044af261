#!/usr/bin/env bash
# Installs what building, running and testing Wye needs beside Rust, where it is missing. Quick when nothing is.
#
#   scripts/install-deps.sh run      to build and run it: a C and C++ compiler, make, OpenSSL
#   scripts/install-deps.sh test     also to test it: Python with venv, Java and Maven for a real Apache Kafka, kcat
#   scripts/install-deps.sh bench    also to run it beside others: a Java compiler
#
# Works as root, or through sudo. Where it may not install, or there is no apt, it says what to install and stops.
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
    # A Kafka client that is not ours.
    need kcat have kcat
}

# Prints how to become root, as the words to put before a command; fails if there is no way without a question.
as_root() {
    [ "$(id -u)" -eq 0 ] && return
    have sudo || return 1
    if [ -t 0 ]; then echo sudo; else sudo -n true 2>/dev/null && echo "sudo -n"; fi
}

install_missing() {
    local command="apt-get install -y --no-install-recommends ${missing[*]}" root
    have apt-get || fail "please install, with this system's package manager, what Debian calls: ${missing[*]}"
    root="$(as_root)" || fail "not root and no sudo without a password. Please run as root: $command"
    say "installing: ${missing[*]}"
    # shellcheck disable=SC2086 # the words of $root and $command are meant to be split
    {
        $root apt-get update -qq </dev/null >&2 || say "apt-get update failed: trying with the lists that are there"
        $root env DEBIAN_FRONTEND=noninteractive $command -qq </dev/null >&2 || fail "cannot install. Please try by hand: $command"
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
