# Shared by the scripts in this folder, each of which tests one real Kafka client with a broker. Sourced, never run.
#
# A script is called as NAME.sh BOOTSTRAP TOPIC DIRECTORY: the topic exists, is empty and has two partitions; the script may
# write to the directory. The exit code is 0 if the client works, 77 if it is not installed, which the script prints; else the
# script prints the error.
# shellcheck shell=bash
set -euo pipefail

# shellcheck disable=SC2034 # for the scripts
bootstrap="$1" topic="$2" directory="$3"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export root

skip() {
    printf '%s\n' "$*"
    exit 77
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# same WHAT EXPECTED FOUND
same() { [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"; }

# contains WHAT WORD TEXT
contains() { grep -qF -- "$2" <<<"$3" || fail "$1: '$2' is not in: $3"; }

# fails WHAT COMMAND...: the command must fail, and must not hang. Prints its output.
fails() {
    local what="$1" printed status=0
    shift
    printed="$(timeout 20 "$@" 2>&1)" || status=$?
    [ "$status" -ne 0 ] || fail "$what: it should fail, but printed: $printed"
    [ "$status" -ne 124 ] || fail "$what: it hung, and printed: $printed"
    printf '%s\n' "$printed"
}
