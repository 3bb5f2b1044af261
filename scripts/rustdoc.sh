#!/usr/bin/env bash
# Replaces rustdoc in `cargo test --doc`: first checks the documentation of the crate, with warnings as errors, then runs its
# documentation tests. So no dependencies are built for the documentation alone.
set -euo pipefail

rustdoc="$(rustup which rustdoc 2>/dev/null || command -v rustdoc)"
documented=()
is_test=false
skip=false
for argument in "$@"; do
    if $skip; then
        skip=false
        continue
    fi
    case "$argument" in
        --test) is_test=true ;;
        --test-run-directory | --test-args | --test-runtool | --test-runtool-arg) skip=true ;;
        --test-run-directory=* | --test-args=*) ;;
        *) documented+=("$argument") ;;
    esac
done
if $is_test; then
    output="$(mktemp -d "${TMPDIR:-/tmp}/wye-doc.XXXXXX")"
    trap 'rm -rf "$output"' EXIT
    "$rustdoc" "${documented[@]}" -D warnings --out-dir "$output"
fi
"$rustdoc" "$@"
