#!/usr/bin/env bash
# Creates a Python environment of the tests below the cache directory, with the packages of a list in scripts/venv.
#
#   scripts/venv.sh               create that of requirements.txt if it is missing, and print the path of its python
#   scripts/venv.sh open-tables   the same with the packages of open-tables.txt: readers of Delta tables
#
# The name of its directory has a digest of the requirements and the Python version, so a change of either creates a new one.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

list="${1:-requirements}"
requirements="$wye_root/scripts/venv/$list.txt"
[ -e "$requirements" ] || fail "usage: venv.sh [open-tables]"

have python3 || fail "python3 is missing: run scripts/install-deps.sh test"
digest="$({ cat "$requirements"; python3 --version; } | sha256sum | cut -c1-12)"
venv="$wye_cache/venv-$digest"

make_venv() {
    [ -e "$venv/.complete" ] && return
    say "creating a Python environment of the tests ($list) ..."
    rm -rf "$venv"
    python3 -m venv "$venv" >&2 || fail "python3 cannot create a virtual environment: run scripts/install-deps.sh test"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" >&2
    touch "$venv/.complete"
}

once "venv-$list" make_venv
echo "$venv/bin/python"
