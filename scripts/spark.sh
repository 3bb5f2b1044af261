#!/usr/bin/env bash
# Downloads the jars with which Spark (of scripts/venv/open-tables.txt) reads Delta tables, from Maven Central.
#
#   scripts/spark.sh      download them if they are missing, and print their directory
#
# Needs mvn (scripts/install-deps.sh test).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

pom="$wye_root/scripts/spark/pom.xml"
# The name of the directory has a digest of the list of jars, so another list has another directory.
fetched="$wye_cache/spark-delta-$(sha256sum "$pom" | cut -c1-12)"

fetch() {
    [ -e "$fetched/.complete" ] && return
    have mvn || fail "maven is missing: run scripts/install-deps.sh test"
    say "downloading Delta for Spark from Maven Central ..."
    mkdir -p "$fetched"
    mvn -q -B -f "$pom" dependency:copy-dependencies \
        -DoutputDirectory="$fetched" -DincludeScope=runtime </dev/null >&2
    touch "$fetched/.complete"
}

once spark fetch
echo "$fetched"
