#!/usr/bin/env bash
# confluent-kafka (librdkafka) from Python: every codec, groups, admin, and what is rejected.
source "$(dirname "$0")/common.sh"

[ -n "${WYE_TEST_PYTHON:-}" ] || skip "WYE_TEST_PYTHON is not set (scripts/venv.sh creates that Python)"
"$WYE_TEST_PYTHON" -c 'import confluent_kafka' || fail "the Python of the tests has no confluent-kafka"
exec timeout 50 "$WYE_TEST_PYTHON" "$(dirname "$0")/confluent.py" "$bootstrap" "$topic"
