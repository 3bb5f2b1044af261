"""Writes readings to Wye's topic in transactions, and aborts every second one.

usage: transactions.py BOOTSTRAP_SERVERS COUNT
"""

import json
import sys

from confluent_kafka import Producer


def main():
    bootstrap_servers, count = sys.argv[1], int(sys.argv[2])
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "transactional.id": "wye-test",
            "partitioner": "murmur2_random",
        }
    )
    producer.init_transactions(30)
    for number in range(count):
        producer.begin_transaction()
        reading = {
            "device_id": "pump",
            "metric": "pressure",
            "value": number,
            "event_time": "2026-01-01T00:00:00Z",
            "sequence": number,
        }
        producer.produce("readings", key="pump", value=json.dumps(reading))
        if number % 2 == 0:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)


main()
