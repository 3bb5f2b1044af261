# Shared by the scripts beside it, each of which drives one real Kafka client against a broker. Sourced, never run.
#
# A script is called as NAME.sh BOOTSTRAP TOPIC DIRECTORY: the topic is there, empty, with two partitions; the directory
# is its own. It ends with 0 if the client works, with 77 and a word why if the client is not here, else it says what
# went wrong.
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

# fails WHAT COMMAND...: the command ends by itself, within a time, and not well; what it says goes to standard output
fails() {
    local what="$1" said status=0
    shift
    said="$(timeout 20 "$@" 2>&1)" || status=$?
    [ "$status" -ne 0 ] || fail "$what: it should fail, but said: $said"
    [ "$status" -ne 124 ] || fail "$what: it hung, and said: $said"
    printf '%s\n' "$said"
}
