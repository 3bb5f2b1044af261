"""Tests kafka-python with a broker: writes, reads as a group, requests offsets by time."""

import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

bootstrap, topic = sys.argv[1:]
COUNT = 300

producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", compression_type="gzip", linger_ms=20)
sent = [producer.send(topic, f"value {number}".encode(), key=str(number).encode()) for number in range(COUNT)]
for future in sent:
    future.get(timeout=20)
producer.close()

consumer = KafkaConsumer(
    topic,
    bootstrap_servers=bootstrap,
    group_id=f"kafka-python-{topic}",
    auto_offset_reset="earliest",
    enable_auto_commit=False,
    consumer_timeout_ms=20_000,
)
values = set()
for message in consumer:
    values.add(message.value.decode())
    if len(values) == COUNT:
        break
assert values == {f"value {number}" for number in range(COUNT)}, len(values)
consumer.commit()
partitions = [TopicPartition(topic, partition) for partition in (0, 1)]
committed = [consumer.committed(partition) or 0 for partition in partitions]
assert sum(committed) == COUNT, committed
firsts = consumer.offsets_for_times({partition: 0 for partition in partitions})
assert [firsts[partition].offset for partition in partitions] == [0, 0], firsts
consumer.close()
