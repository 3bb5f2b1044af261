"""What surrounds a rival's run: its topic of results made beforehand, and afterwards the readings in it counted.

    topics.py create BOOTSTRAP TOPIC             make a topic of one Kafka partition that keeps everything
    topics.py total BOOTSTRAP TOPIC READINGS     fail unless the committed windows hold that many readings
    topics.py size BOOTSTRAP TOPIC MESSAGES      fail unless the topic holds that many messages
"""

import json
import sys

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

SECONDS = 30


def create(bootstrap, topic):
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 4})
    # Results may carry the times of the readings, which lie years back: nothing may be deleted by age.
    spec = NewTopic(topic, 1, 1, config={"retention.ms": "-1"})
    admin.create_topics([spec])[topic].result(SECONDS)


def consumer(bootstrap):
    return Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": "rival-topics",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
    })


def size(bootstrap, topic):
    begin, end = consumer(bootstrap).get_watermark_offsets(TopicPartition(topic, 0), timeout=SECONDS)
    return end - begin


def total(bootstrap, topic):
    reader = consumer(bootstrap)
    reader.assign([TopicPartition(topic, 0, 0)])
    counted = 0
    while (message := reader.poll(SECONDS)) is not None:
        if message.error() is None:
            counted += json.loads(message.value())["n"]
        elif message.error().name() == "_PARTITION_EOF":
            return counted
        else:
            raise KafkaException(message.error())
    sys.exit(f"{topic}: no end within {SECONDS} s")


def main():
    match sys.argv[1:]:
        case ["create", bootstrap, topic]:
            create(bootstrap, topic)
        case [("total" | "size") as what, bootstrap, topic, expected]:
            found = {"total": total, "size": size}[what](bootstrap, topic)
            if found != int(expected):
                sys.exit(f"{topic}: {what} is {found}, not {expected}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
