#!/usr/bin/env bash
# The speed layer beside Flink and Kafka Streams: the same work on the same full topic of one real Apache Kafka, one
# system after the other.
#
#   tests/rivals/speed/run.sh READINGS      fill a topic with so many readings, measure, print a table
#
# WYE_THROUGHPUT is the benchmark of the speed layer, which also fills the topic; by default what
# `cargo bench --workspace --bench throughput --no-run` leaves in the target directory. Nothing is built here.
#
# Every system has one Kafka partition and exactly-once output, and shares the machine with the broker. The rivals
# commit as often as Wye's epochs end, every 10 s. Wye also removes duplicates; the rivals do not. Needs java, javac,
# mvn and python3 (scripts/install-deps.sh test).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/common.sh"
here="$wye_root/tests/rivals/speed"

flink_version=2.3.0
connector_version=4.0.1-2.0
wye="${WYE_THROUGHPUT:-$(find "${CARGO_TARGET_DIR:-$wye_cache/target}/release/deps" -name "throughput-*" -executable -type f -printf "%T@ %p\n" 2>/dev/null | sort -n | tail -n 1 | cut -d" " -f2)}"
# The topic that the benchmark fills.
input=readings
export PYTHONDONTWRITEBYTECODE=1

if [[ $# -ne 1 || ! "$1" =~ ^[1-9][0-9]*$ ]]; then
    say "usage: run.sh READINGS"
    exit 2
fi
readings="$1"
[ -x "$wye" ] || fail "the benchmark is missing: cargo bench --workspace --bench throughput --no-run"
for tool in java javac mvn; do
    have "$tool" || fail "$tool is missing: run scripts/install-deps.sh test"
done

work="$(mktemp -d "${TMPDIR:-/tmp}/wye-rivals.XXXXXX")"
child=
finish() {
    local status=$?
    if [ -n "$child" ]; then kill "$child" 2>/dev/null || true; fi
    "$wye_root/scripts/kafka.sh" stop "$work/kafka" || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A directory of jars or packages below the cache is made once, and is there only when it is complete.
made() { [ -e "$1/.complete" ]; }

flink="$wye_cache/rival-flink-$flink_version"
get_flink() {
    made "$flink" && return
    say "fetching Flink $flink_version ..."
    rm -rf "$flink"
    python3 -m venv "$flink"
    "$flink/bin/python" -m pip install --quiet --disable-pip-version-check "apache-flink==$flink_version" >&2
    mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
        -Dartifact="org.apache.flink:flink-sql-connector-kafka:$connector_version" \
        -DoutputDirectory="$flink/jars" </dev/null >&2
    touch "$flink/.complete"
}

pom="$here/kafka-streams/pom.xml"
streams="$wye_cache/rival-kafka-streams-$(sha256sum "$pom" | cut -c1-12)"
get_streams() {
    made "$streams" && return
    say "fetching Kafka Streams ..."
    rm -rf "$streams"
    mvn -q -B -f "$pom" dependency:copy-dependencies -DoutputDirectory="$streams" -DincludeScope=runtime \
        </dev/null >&2
    touch "$streams/.complete"
}

# In the background and waited for, so that a signal ends it at once.
waited() {
    local status=0
    "$@" &
    child=$!
    wait "$child" || status=$?
    child=
    return "$status"
}

row() { table+=("$(printf '%-22s %12s %14s %12s %11s  %s' "$@")"); }
number() { sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p" "$2"; }

# rival NAME OUTPUT COMMAND...: runs it, checks that all readings are in its committed windows, adds its row.
rival() {
    local name="$1" output="$2" answer="$work/$2.json" begin end
    shift 2
    "$python" "$here/topics.py" create "$bootstrap" "$output"
    say "$name ..."
    begin="$EPOCHREALTIME"
    waited "$@" >"$answer" || fail "$name failed"
    end="$EPOCHREALTIME"
    "$python" "$here/topics.py" total "$bootstrap" "$output" "$readings"
    row "$name" "$(number rate "$answer")" "$(number warm_rate "$answer")" \
        "$(awk "BEGIN { printf \"%.2f\", $(number cpu_seconds "$answer") * 1e6 / $readings }")" \
        "$(awk "BEGIN { printf \"%.1f s\", $end - $begin }")" "no"
}

python="$("$wye_root/scripts/venv.sh")"
once rival-flink get_flink
once rival-kafka-streams get_streams
mkdir "$work/classes"
javac -cp "$streams/*" -d "$work/classes" "$here/kafka-streams/Windows.java"
"$wye_root/scripts/kafka.sh" start "$work/kafka"
bootstrap="$(cat "$work/kafka/bootstrap")"
say "load average before: $(cut -d' ' -f1-3 /proc/loadavg); $(nproc) cores"

table=()
row system readings/s "second half/s" "CPU-s/million" "wall" "start-up in readings/s"

say "Wye ..."
waited "$wye" json "$readings" "$bootstrap" >"$work/wye" || fail "Wye failed"
cat "$work/wye" >&2
"$python" "$here/topics.py" size "$bootstrap" "$input" "$readings"
figures='^speed layer: [0-9]+ readings in ([0-9.]+) s: ([0-9]+) readings/s, ([0-9.]+) CPU.*'
measured="$(sed -nE "s|$figures|\1 \2 \3|p" "$work/wye")"
[ -n "$measured" ] || fail "cannot read what $wye printed"
read -r seconds rate cpu <<<"$measured"
row Wye "$rate" - "$cpu" "$seconds s" "the layer's, not the process's"

rival "Kafka Streams" rival-kafka-streams java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    -cp "$work/classes:$streams/*" Windows "$bootstrap" "$input" rival-kafka-streams "$readings" "$work/state"
# Flink leaves files of its own where Java keeps temporary ones.
export FLINK_LOG_DIR="$work" JAVA_TOOL_OPTIONS="-Djava.io.tmpdir=$work"
rival "Flink SQL $flink_version" rival-flink "$flink/bin/python" \
    "$here/flink.py" "$bootstrap" "$input" rival-flink "$readings" "$flink"/jars/*.jar

echo "$readings readings, one Kafka partition, JSON; first record to last. Wall is from start to end of the process,"
echo "with start-up and the last commit; for Wye it is the measured time, as its process also fills the topic."
printf '%s\n' "${table[@]}"
