#!/usr/bin/env bash
# The cargo tools of the gate, each in a pinned version, below the cache directory. Nothing of the user's is touched.
#
#   scripts/tools.sh     install what is not there; the directory of the programs goes to standard output
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
        # They run for seconds, so the time to build them counts: no optimisation.
        env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
            nice -n 19 cargo install --quiet --locked --debug --root "$tools" --target-dir "$build" "$tool" </dev/null >&2
    done
    rm -rf "$build"
}

once tools install_tools
echo "$tools/bin"
