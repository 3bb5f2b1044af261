#!/usr/bin/env bash
# The Python of the tests: a virtual environment below the cache directory, with what scripts/venv/requirements.txt pins.
#
#   scripts/venv.sh      make it if it is not there; the path of its python goes to standard output
#
# Its directory carries a digest of the requirements and the Python version, so a change of either makes a new one, and
# one that is there is complete.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

requirements="$wye_root/scripts/venv/requirements.txt"

have python3 || fail "python3 is missing: run scripts/install-deps.sh test"
digest="$({ cat "$requirements"; python3 --version; } | sha256sum | cut -c1-12)"
venv="$wye_cache/venv-$digest"

make_venv() {
    [ -e "$venv/.complete" ] && return
    say "making the Python environment of the tests ..."
    rm -rf "$venv"
    python3 -m venv "$venv" >&2 || fail "python3 cannot make a virtual environment: run scripts/install-deps.sh test"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" >&2
    touch "$venv/.complete"
}

once venv make_venv
echo "$venv/bin/python"
