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

once spark copy_jars "$pom" "$fetched" "Delta for Spark"
echo "$fetched"
