#!/usr/bin/env bash
# Runs libFuzzer on the decoders (tests/fuzz), starting from the seeds and from the inputs of earlier runs.
#
#   scripts/fuzz.sh [SECONDS [DECODER...]]    processor time for each decoder (default 600); default: all decoders
#
# Needs the nightly toolchain of rustup. Input that breaks a decoder is stored in the cache directory; a message says where.
# Repair the decoder, and add the input to tests/fuzz/seeds, which the tests read.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$wye_root"

seconds="${1:-600}"
shift || true
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || fail "usage: fuzz.sh [SECONDS [DECODER...]]"
decoders=("$@")
if [ ${#decoders[@]} -eq 0 ]; then
    for folder in tests/fuzz/seeds/*/; do decoders+=("$(basename "$folder")"); done
fi

tool="$wye_cache/fuzz/tool"
build="$wye_cache/fuzz/target"
rustup run nightly rustc --version >/dev/null 2>&1 || fail "the nightly toolchain is missing: rustup toolchain install nightly"
[ -x "$tool/bin/cargo-fuzz" ] || cargo install --quiet --locked --root "$tool" cargo-fuzz@0.13.2 </dev/null

say "building the decoders with libFuzzer ..."
cargo=(cargo +nightly)
PATH="$tool/bin:$PATH" "${cargo[@]}" fuzz build --fuzz-dir tests/fuzz --target-dir "$build" --features libfuzzer decoder
program="$(find "$build" -path '*/release/decoder' -type f | head -n 1)"

# processor_seconds PROCESS: the processor time that it has used.
processor_seconds() {
    awk -v ticks="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print int(($12 + $13) / ticks) }' "/proc/$1/stat" 2>/dev/null
}

broken=()
for decoder in "${decoders[@]}"; do
    seeds="tests/fuzz/seeds/$decoder"
    [ -d "$seeds" ] || fail "there is no decoder $decoder; the decoders are: $(ls tests/fuzz/seeds | xargs)"
    found="$wye_cache/fuzz/found/$decoder"
    crashes="$wye_cache/fuzz/crashes/$decoder"
    log="$wye_cache/fuzz/$decoder.log"
    mkdir -p "$found" "$crashes"
    WYE_FUZZ_DECODER="$decoder" "$program" "$found" "$seeds" -artifact_prefix="$crashes/" -timeout=30 \
        -rss_limit_mb=3000 -malloc_limit_mb=1000 -max_len=65536 -print_final_stats=1 </dev/null >"$log" 2>&1 &
    fuzzer=$!
    trap 'kill "$fuzzer" 2>/dev/null || true' EXIT
    # Processor time, since other processes may be running.
    used=0
    while [ "$used" -lt "$seconds" ] && kill -0 "$fuzzer" 2>/dev/null; do
        sleep 1
        used="$(processor_seconds "$fuzzer" || echo "$used")"
        used="${used:-$seconds}"
    done
    kill -INT "$fuzzer" 2>/dev/null || true
    wait "$fuzzer" || true
    inputs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    if grep -q 'SUMMARY: .*Sanitizer\|ERROR: libFuzzer' "$log"; then
        broken+=("$decoder")
        say "$decoder: BROKEN after ${used} s; see $log and $crashes"
    else
        say "$decoder: ${inputs:-?} inputs in ${used} s of processor time, none broke it"
    fi
done
[ ${#broken[@]} -eq 0 ] || fail "broken: ${broken[*]}"
