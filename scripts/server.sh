# Starts and stops a server that the tests need. Sourced by the scripts of the servers (kafka.sh, s3.sh), never run.
#
# Such a script sets what is used here, and ends with `main "$@"`:
#
#   name, version                what it is called, and which version runs
#   address                      the file in $dir that has its address while it runs
#   log                          the file in $dir with its output
#   mark                         the path below $dir that its command line contains
#   taken                        what it prints when another process has its port, as a pattern of grep
#   fetched                      the directory with its programs
#   ready_seconds, stop_seconds  how long it may take to start and to stop
#   fetch                        a function that downloads or builds it
#   check                        a function that fails if a program is missing
#   launch                       a function that starts it and waits for `ready`; fails if it has ended
#   answers PORT                 a function: whether it answers
# shellcheck shell=bash disable=SC2154 # the sourcing script sets the variables

usage() {
    say "usage: $(basename "$0") start|stop|status DIR, or $(basename "$0") fetch"
    exit 2
}

# Prints the process ID of the server of this directory if it runs. The same ID of another process does not count.
alive() {
    local pid
    pid="$(cat "$dir/pid" 2>/dev/null)" || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$dir/$mark" || return 1
    echo "$pid"
}

# free_ports COUNT: prints free ports. They differ, since all are bound at the same time.
free_ports() {
    python3 -c '
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))' "$1"
}

# ready PID PORT: waits until the process answers at the port; fails if it has ended.
ready() {
    local pid="$1" port="$2" deadline=$((SECONDS + ready_seconds))
    echo "$pid" >"$dir/pid"
    until answers "$port"; do
        kill -0 "$pid" 2>/dev/null || return 1
        if [ "$SECONDS" -ge "$deadline" ]; then
            kill -KILL "$pid" 2>/dev/null || true
            fail "$name did not answer within $ready_seconds s: see $dir/$log"
        fi
        sleep 0.1
    done
}

# publish ADDRESS: says where the server is, all at once.
publish() {
    echo "$1" >"$dir/$address.new"
    mv "$dir/$address.new" "$dir/$address"
}

start() {
    check
    mkdir -p "$dir"
    if alive >/dev/null; then
        say "$name already runs at $(cat "$dir/$address")"
        return
    fi
    rm -f "${dir:?}/$address"
    once "$(basename "$fetched")" fetch
    # Another process may take a port before the server does.
    for _ in 1 2 3; do
        if launch; then
            say "$name $version at $(cat "$dir/$address")"
            return
        fi
        grep -q "$taken" "$dir/$log" || break
    done
    tail -n 20 "$dir/$log" >&2
    fail "$name did not start: see $dir/$log"
}

stop() {
    local pid deadline
    if ! pid="$(alive)"; then
        say "no $name is running in $dir"
        return
    fi
    kill -TERM "$pid"
    deadline=$((SECONDS + stop_seconds))
    while alive >/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "$name did not stop within $stop_seconds s: killed"
            kill -KILL "$pid"
            break
        fi
        sleep 0.1
    done
    rm -f "$dir/pid" "${dir:?}/$address"
}

status() {
    if alive >/dev/null; then
        say "running at $(cat "$dir/$address" 2>/dev/null || echo 'an unknown address')"
    else
        say "not running"
        return 1
    fi
}

main() {
    case "${1:-}" in
        fetch)
            once "$(basename "$fetched")" fetch
            echo "$fetched"
            ;;
        start | stop | status)
            [ $# -eq 2 ] || usage
            dir="$(realpath -m "$2")"
            "$1"
            ;;
        *) usage ;;
    esac
}
