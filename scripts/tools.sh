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

install_tools() {
    local tool build="$tools/build"
    for tool in "${wanted[@]}"; do
        installed "$tool" && continue
        say "building $tool ..."
        # Without optimisation: they run for seconds, so their build takes most of the time.
        env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
            nice -n 19 cargo install --quiet --locked --debug --root "$tools" --target-dir "$build" "$tool" </dev/null >&2
    done
    rm -rf "$build"
}

once tools install_tools
echo "$tools/bin"
