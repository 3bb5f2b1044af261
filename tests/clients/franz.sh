#!/usr/bin/env bash
# franz-go: the common client of Go programs.
source "$(dirname "$0")/common.sh"

have go || skip "go is not installed"
built="${XDG_CACHE_HOME:-$HOME/.cache}/wye/franz"
mkdir -p "$built"
(cd "$root/tests/clients/franz" && GOFLAGS=-mod=readonly GOTOOLCHAIN=local go build -o "$built/franz" .)
exec timeout 50 "$built/franz" "$bootstrap" "$topic"
