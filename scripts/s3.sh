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

version=1.8.0
programs="$wye_cache/versitygw-$version"
module=github.com/versity/versitygw
# What the module needs.
go_version=1.25.0
ready_seconds=30
stop_seconds=10

usage() {
    say "usage: s3.sh start|stop|status DIR, or s3.sh fetch"
    exit 2
}

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
    [ -e "$programs/.complete" ] && return
    have go || fail "go is missing: run scripts/install-deps.sh test"
    say "building versitygw $version ..."
    mkdir -p "$programs"
    # Not in the user's caches, and removed with everything else.
    export GOCACHE="$programs/build" GOMODCACHE="$programs/modules" GOFLAGS=-modcacherw
    local go
    go="$(go_command)"
    GOBIN="$programs" GOTOOLCHAIN=local nice -n 19 "$go" install "$module/cmd/versitygw@v$version" \
        </dev/null >"$programs/build.log" 2>&1 \
        || fail "cannot build versitygw: see $programs/build.log"
    rm -rf "$GOCACHE" "$GOMODCACHE"
    touch "$programs/.complete"
}

free_port() {
    python3 -c '
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# Prints the process ID of the server of this directory if it runs. The same ID of another process does not count.
alive() {
    local pid
    pid="$(cat "$dir/pid" 2>/dev/null)" || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$dir/objects" || return 1
    echo "$pid"
}

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
    local port pid deadline
    port="$(free_port)"
    # The directories in `objects` are the buckets.
    mkdir -p "$dir/objects/wye" "$dir/metadata"
    if [ ! -e "$dir/secret-key" ]; then
        printf wye-tests >"$dir/access-key"
        (umask 077 && python3 -c 'import secrets; print(secrets.token_hex(20), end="")' >"$dir/secret-key")
    fi
    # In another session, so that an interrupt at the terminal goes to the tests and not to the server.
    ROOT_ACCESS_KEY="$(cat "$dir/access-key")" ROOT_SECRET_KEY="$(cat "$dir/secret-key")" \
        setsid "$programs/versitygw" --port "127.0.0.1:$port" --keep-alive --quiet \
        posix --sidecar "$dir/metadata" "$dir/objects" </dev/null >>"$dir/s3.log" 2>&1 &
    pid=$!
    echo "$pid" >"$dir/pid"
    deadline=$((SECONDS + ready_seconds))
    until answers "$port"; do
        kill -0 "$pid" 2>/dev/null || return 1
        if [ "$SECONDS" -ge "$deadline" ]; then
            kill -KILL "$pid" 2>/dev/null || true
            fail "versitygw did not answer within $ready_seconds s: see $dir/s3.log"
        fi
        sleep 0.1
    done
    echo "http://127.0.0.1:$port" >"$dir/endpoint.new"
    mv "$dir/endpoint.new" "$dir/endpoint"
}

start() {
    mkdir -p "$dir"
    if alive >/dev/null; then
        say "versitygw already runs at $(cat "$dir/endpoint")"
        return
    fi
    rm -f "$dir/endpoint"
    once "versitygw-$version" fetch
    # Another process may take the port before the server does.
    for _ in 1 2 3; do
        if launch; then
            say "versitygw $version at $(cat "$dir/endpoint")"
            return
        fi
        grep -q 'address already in use' "$dir/s3.log" || break
    done
    tail -n 20 "$dir/s3.log" >&2
    fail "versitygw did not start: see $dir/s3.log"
}

stop() {
    local pid deadline
    if ! pid="$(alive)"; then
        say "no versitygw is running in $dir"
        return
    fi
    kill -TERM "$pid"
    deadline=$((SECONDS + stop_seconds))
    while alive >/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "versitygw did not stop within $stop_seconds s: killed"
            kill -KILL "$pid"
            break
        fi
        sleep 0.1
    done
    rm -f "$dir/pid" "$dir/endpoint"
}

status() {
    if alive >/dev/null; then
        say "running at $(cat "$dir/endpoint" 2>/dev/null || echo 'an unknown address')"
    else
        say "not running"
        return 1
    fi
}

case "${1:-}" in
    fetch)
        once "versitygw-$version" fetch
        echo "$programs"
        ;;
    start | stop | status)
        [ $# -eq 2 ] || usage
        dir="$(realpath -m "$2")"
        "$1"
        ;;
    *) usage ;;
esac
