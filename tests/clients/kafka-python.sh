#!/usr/bin/env bash
# kafka-python: a client that shares no code with the others.
source "$(dirname "$0")/common.sh"

[ -n "${WYE_TEST_PYTHON:-}" ] || skip "WYE_TEST_PYTHON is not set (scripts/venv.sh creates that Python)"
"$WYE_TEST_PYTHON" -c 'import kafka' || fail "the Python of the tests has no kafka-python"
exec timeout 50 "$WYE_TEST_PYTHON" "$(dirname "$0")/kafka-python.py" "$bootstrap" "$topic"
