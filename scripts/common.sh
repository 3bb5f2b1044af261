# Shared by the scripts in this folder: directories and messages. Sourced, never run.
#
# Everything that a script downloads or builds is stored below one cache directory, never in the source tree. Other clones
# and later runs use it again, and removing that directory removes all of it.
# shellcheck shell=bash

wye_cache="${XDG_CACHE_HOME:-$HOME/.cache}/wye"
wye_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export wye_cache wye_root

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$(basename "$0"): $*"
    exit 1
}

# copy_jars POM DIR WHAT: copies the jars that a list of Maven names into a directory, unless it has them.
copy_jars() {
    local pom="$1" dir="$2" what="$3"
    [ -e "$dir/.complete" ] && return
    have mvn || fail "maven is missing: run scripts/install-deps.sh test"
    say "downloading $what from Maven Central ..."
    mkdir -p "$dir"
    mvn -q -B -f "$pom" dependency:copy-dependencies \
        -DoutputDirectory="$dir" -DincludeScope=runtime </dev/null >&2
    touch "$dir/.complete"
}

have() { command -v "$1" >/dev/null 2>&1; }

# once NAME COMMAND...: runs the command; only one process at a time runs it for the same name, the others wait.
once() {
    local name="$1"
    shift
    mkdir -p "$wye_cache"
    (
        flock 9
        "$@"
    ) 9>"$wye_cache/.$name.lock"
}
