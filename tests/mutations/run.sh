#!/usr/bin/env bash
# Breaks the protocol on purpose, in one way after the other, and expects the simulation (tests/gate/simulation.rs) to fail.
#
#   tests/mutations/run.sh                all breakages
#   tests/mutations/run.sh 03 17          those whose names begin so
#
# Each `NN-name.patch` is one breakage; its first line says what it breaks. It is applied to a copy of the sources. The
# number of histories is that of the gate, unless WYE_TEST_HISTORIES says otherwise. Ends with 1 if the simulation does not
# notice one. Third-party crates are taken from CARGO_TARGET_DIR as `make test` has built them; our own are built into it
# for another folder, so that they do not get in the way of those of this one. About a minute each on two cores.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/wye/target}
# Quick to build matters here, not quick to run.
export CARGO_INCREMENTAL=1
slow=()
for crate in wye-batch wye-broker wye-domain wye-log wye-metrics wye-runtime wye-serving wye-speed wye-tables wye-tests; do
    slow+=(--config "profile.release.package.$crate.opt-level=1")
done

work=$CARGO_TARGET_DIR/mutations
rm -rf "$work"
mkdir -p "$work/wye"
git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$work/wye")
cd "$work/wye"

gate=(cargo test --locked --release --workspace --test gate "${slow[@]}")

# What became of the simulation, in one line.
simulate() {
    if ! "${gate[@]}" --no-run >"$work/build" 2>&1; then
        cat "$work/build" >&2
        echo "does not build"
    elif timeout 900 "${gate[@]}" -- equivalence >"$work/run" 2>&1; then
        echo "survives"
    else
        local why
        why=$(grep -m1 -oE 'fails: .*|panicked at .*|never happened.*|were compared' "$work/run" || echo "no end")
        echo "found: ${why:0:110}"
    fi
}

# Whether the name in $1 begins with one of the others, if there are any.
wanted() {
    [ $# -gt 1 ] || return 0
    local name=$1 prefix
    shift
    for prefix in "$@"; do
        case $name in "$prefix"*) return 0 ;; esac
    done
    return 1
}

unchanged=$(simulate)
printf '%-48s %s\n' "nothing is broken" "$unchanged"
[ "$unchanged" = survives ] || exit 1
bad=0
for patch in "$here"/*.patch; do
    name=$(basename "$patch" .patch)
    wanted "$name" "$@" || continue
    patch --quiet -p1 <"$patch"
    outcome=$(simulate)
    patch --quiet -p1 --reverse <"$patch"
    printf '%-48s %s\n' "$name" "$outcome"
    case $outcome in found:*) ;; *) bad=1 ;; esac
done
exit $bad
