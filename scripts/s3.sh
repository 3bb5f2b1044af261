#!/usr/bin/env bash
# Runs a server with the protocol of Amazon S3 on this machine, for tests: versitygw, from its Go module.
#
#   scripts/s3.sh start DIR    start it with its objects in DIR, and wait until it answers. DIR/endpoint has its URL,
#                              DIR/access-key and DIR/secret-key an account; there is one bucket, `wye`
#   scripts/s3.sh stop DIR     stop it
#   scripts/s3.sh status DIR   print whether it runs; the exit code is 0 if so, else 1
#   scripts/s3.sh fetch        only build the server, and print its directory
#
# Needs go and python3 (scripts/install-deps.sh test).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/server.sh
source "$(dirname "${BASH_SOURCE[0]}")/server.sh"

name=versitygw
version=1.8.0
fetched="$wye_cache/versitygw-$version"
address=endpoint
log=s3.log
mark=objects
taken='address already in use'
module=github.com/versity/versitygw
# What the module needs.
go_version=1.25.0
ready_seconds=30
stop_seconds=10

# Prints the go command that builds the server. Debian's is too old, but it can fetch a newer one, which is a module too.
go_command() {
    local directory
    if printf '%s\n' "go$go_version" "$(go env GOVERSION)" | sort --version-sort --check=quiet; then
        echo go
        return
    fi
    say "fetching Go $go_version ..."
    directory="$(go mod download -json "golang.org/toolchain@v0.0.1-go$go_version.$(go env GOOS)-$(go env GOARCH)" \
        | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')"
    # Modules have no executable files.
    chmod +x "$directory"/bin/* "$directory"/pkg/tool/*/*
    echo "$directory/bin/go"
}

fetch() {
    [ -e "$fetched/.complete" ] && return
    have go || fail "go is missing: run scripts/install-deps.sh test"
    say "building versitygw $version ..."
    mkdir -p "$fetched"
    # Not in the user's caches, and removed with everything else.
    export GOCACHE="$fetched/build" GOMODCACHE="$fetched/modules" GOFLAGS=-modcacherw
    local go
    go="$(go_command)"
    GOBIN="$fetched" GOTOOLCHAIN=local nice -n 19 "$go" install "$module/cmd/versitygw@v$version" \
        </dev/null >"$fetched/build.log" 2>&1 \
        || fail "cannot build versitygw: see $fetched/build.log"
    rm -rf "$GOCACHE" "$GOMODCACHE"
    touch "$fetched/.complete"
}

check() { have python3 || fail "python3 is missing: run scripts/install-deps.sh test"; }

# Whether it answers HTTP. A request without a signature is an error for it, and an answer for us.
answers() {
    local answer
    # shellcheck disable=SC2016 # the inner shell expands it
    answer="$(timeout 5 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" >&3
        head -c 8 <&3' ask "$1" 2>/dev/null)" || return 1
    [ "$answer" = "HTTP/1.1" ]
}

launch() {
    local port
    port="$(free_ports 1)"
    # The directories in `objects` are the buckets.
    mkdir -p "$dir/objects/wye" "$dir/metadata"
    if [ ! -e "$dir/secret-key" ]; then
        printf wye-tests >"$dir/access-key"
        (umask 077 && python3 -c 'import secrets; print(secrets.token_hex(20), end="")' >"$dir/secret-key")
    fi
    # In another session, so that an interrupt at the terminal goes to the tests and not to the server.
    ROOT_ACCESS_KEY="$(cat "$dir/access-key")" ROOT_SECRET_KEY="$(cat "$dir/secret-key")" \
        setsid "$fetched/versitygw" --port "127.0.0.1:$port" --keep-alive --quiet \
        posix --sidecar "$dir/metadata" "$dir/objects" </dev/null >>"$dir/s3.log" 2>&1 &
    ready $! "$port" || return 1
    publish "http://127.0.0.1:$port"
}

main "$@"
