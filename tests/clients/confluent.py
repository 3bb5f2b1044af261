"""Tests confluent-kafka with a broker: every codec, two members of a group, admin calls, and what is rejected."""

import sys
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

bootstrap, topic = sys.argv[1:]
base = {"bootstrap.servers": bootstrap}
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
EACH = 200


def produce(codec, **more):
    failed = []
    producer = Producer({**base, "compression.type": codec, "linger.ms": 20, **more})
    for number in range(EACH):
        value = f"{codec} {number} " + "filler " * 20
        producer.produce(topic, value, key=str(number), on_delivery=lambda error, _: error and failed.append(error))
    assert producer.flush(20) == 0, f"{codec}: not all was delivered"
    assert not failed, f"{codec}: {failed[0]}"


def join(members):
    """Consumers of one group, each of which has a partition."""
    settings = {**base, "group.id": f"confluent-{topic}", "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumers = [Consumer(settings) for _ in range(members)]
    for consumer in consumers:
        consumer.subscribe([topic])
    deadline = time.monotonic() + 30
    while any(not consumer.assignment() for consumer in consumers):
        assert time.monotonic() < deadline, "the members of the group did not all get a partition"
        for consumer in consumers:
            message = consumer.poll(0.1)
            assert message is None, "the topic is empty"
    return consumers


def read(consumers, count):
    seen, deadline = set(), time.monotonic() + 30
    while len(seen) < count:
        assert time.monotonic() < deadline, f"read {len(seen)} of {count}"
        for consumer in consumers:
            for message in consumer.consume(500, timeout=0.1):
                assert message.error() is None, message.error()
                seen.add((message.partition(), message.offset()))
    for consumer in consumers:
        consumer.commit(asynchronous=False)
        consumer.close()
    assert len(seen) == count, f"read {len(seen)} of {count}"


group = join(members=2)
for codec in CODECS:
    produce(codec)
    produce(codec, **{"enable.idempotence": True})
read(group, len(CODECS) * EACH * 2)

admin = AdminClient(base)
committed = Consumer({**base, "group.id": f"confluent-{topic}"})
ends = [committed.get_watermark_offsets(TopicPartition(topic, partition))[1] for partition in (0, 1)]
offsets = committed.committed([TopicPartition(topic, 0), TopicPartition(topic, 1)], timeout=10)
assert [offset.offset for offset in offsets] == ends, (offsets, ends)
groups = [group.group_id for group in admin.list_consumer_groups().result(10).valid]
assert f"confluent-{topic}" in groups, groups
described = admin.describe_consumer_groups([f"confluent-{topic}"])
assert described[f"confluent-{topic}"].result(10).state.name == "EMPTY"
for deleted in admin.delete_consumer_groups([f"confluent-{topic}"]).values():
    deleted.result(10)

for created in admin.create_topics([NewTopic(f"{topic}-own", 3, 1)]).values():
    created.result(10)
resource = ConfigResource(ConfigResource.Type.TOPIC, f"{topic}-own")
settings = admin.describe_configs([resource])[resource].result(10)
assert settings["message.timestamp.type"].value == "CreateTime", settings
try:
    for refused in admin.create_topics([NewTopic(f"{topic}-kept", 1, 1, config={"retention.ms": "1000"})]).values():
        refused.result(10)
    sys.exit("a retention that would not be kept was accepted")
except KafkaException as refused:
    assert "retention.ms" in str(refused), refused

# Transactions are rejected at once.
transactional = Producer({**base, "transactional.id": "t"})
since = time.monotonic()
try:
    transactional.init_transactions(15)
    sys.exit("transactions were accepted")
except KafkaException as refused:
    assert time.monotonic() - since < 10, "the refusal took long"

# The new consumer protocol (KIP-848) is rejected at once too.
errors = []
modern = Consumer({**base, "group.id": "modern", "group.protocol": "consumer", "error_cb": errors.append})
modern.subscribe([topic])
deadline = time.monotonic() + 10
while not errors:
    assert time.monotonic() < deadline, "the new consumer protocol is neither served nor refused"
    message = modern.poll(0.2)
    if message is not None and message.error():
        errors.append(message.error())
modern.close()
