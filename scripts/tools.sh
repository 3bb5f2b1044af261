#!/usr/bin/env bash
# Installs the cargo tools of the gate, in pinned versions, below the cache directory. The user's own tools stay unchanged.
#
#   scripts/tools.sh     install missing tools, and print the directory of the programs
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tools="$wye_cache/tools"
wanted=(cargo-deny@0.20.2 cargo-machete@0.9.2)

installed() { "$tools/bin/${1%@*}" --version 2>/dev/null | grep -qwF "${1#*@}"; }

# Without optimisation: they run for seconds, so their build takes most of the time.
install_tool() { # install_tool NAME@VERSION
    say "building $1 ..."
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 nice -n 19 cargo install --quiet --locked --debug --no-track --force \
        --root "$tools" --target-dir "$tools/build/${1%@*}" "$1" </dev/null >&2
}

# All at the same time.
install_tools() {
    local tool pid pids=()
    for tool in "${wanted[@]}"; do
        installed "$tool" && continue
        install_tool "$tool" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    rm -rf "$tools/build"
}

once tools install_tools
echo "$tools/bin"
