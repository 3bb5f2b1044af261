# Shared by the scripts beside it: where things are kept, and how a script speaks. Sourced, never run.
#
# Everything that a script fetches or builds goes below one cache directory, never into the source tree, so that a
# second clone and a second run find it again and `rm -rf` of that one directory undoes all of it.
# shellcheck shell=bash

wye_cache="${XDG_CACHE_HOME:-$HOME/.cache}/wye"
wye_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export wye_cache wye_root

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$(basename "$0"): $*"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# once NAME COMMAND...: runs the command unless another process is running it for the same name; that one is waited for.
once() {
    local name="$1"
    shift
    mkdir -p "$wye_cache"
    (
        flock 9
        "$@"
    ) 9>"$wye_cache/.$name.lock"
}
