"""Flink's side of the speed comparison: one-minute windows of device and metric over the whole topic of readings.

Prints one JSON object: the readings a second and the CPU seconds of this process and its JVM, from the first record
that the source took to the last one, and the rate over the second half alone, when the JVM is warm.

Flink SQL in streaming mode on a local mini cluster. The source is bounded by the end of the topic at the start: the
operators are those of an unbounded stream, and the end of the input closes the last windows, so that all can be
counted.
"""

import argparse
import json
import os
import socket
import sys
import time
import urllib.request
from pathlib import Path

from pyflink.common import Configuration
from pyflink.java_gateway import get_gateway
from pyflink.table import EnvironmentSettings, TableEnvironment

PATIENCE_SECONDS = 900
POLL_SECONDS = 0.1

SOURCE = """
    CREATE TABLE readings (
        device_id STRING, metric STRING, `value` DOUBLE, event_time BIGINT, sequence BIGINT,
        ts AS TO_TIMESTAMP_LTZ(event_time, 3), WATERMARK FOR ts AS ts
    ) WITH (
        'connector' = 'kafka', 'topic' = '{topic}', 'format' = 'json',
        'properties.bootstrap.servers' = '{bootstrap}', 'properties.group.id' = 'rival-flink',
        'properties.check.crcs' = 'false', 'properties.max.partition.fetch.bytes' = '8388608',
        'properties.max.poll.records' = '10000',
        'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset'
    )"""

# Each closed window is sent once, and committed with the checkpoint.
SINK = """
    CREATE TABLE results (
        device_id STRING, metric STRING, window_start TIMESTAMP(3),
        n BIGINT, total DOUBLE, low DOUBLE, high DOUBLE, variance DOUBLE
    ) WITH (
        'connector' = 'kafka', 'topic' = '{topic}', 'format' = 'json',
        'properties.bootstrap.servers' = '{bootstrap}',
        'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = 'rival-flink',
        'properties.transaction.timeout.ms' = '600000', 'properties.compression.type' = 'lz4'
    )"""

WINDOWS = """
    INSERT INTO results
    SELECT device_id, metric, window_start, COUNT(*), SUM(`value`), MIN(`value`), MAX(`value`), VAR_SAMP(`value`)
    FROM TUMBLE(TABLE readings, DESCRIPTOR(ts), INTERVAL '1' MINUTE)
    GROUP BY device_id, metric, window_start, window_end"""


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def environment(jars, port):
    configuration = Configuration()
    for key, value in {
        "pipeline.jars": ";".join(jar.resolve().as_uri() for jar in jars),
        "pipeline.object-reuse": "true",
        "parallelism.default": "1",
        "taskmanager.memory.managed.size": "512m",
        # As often as Wye's epochs.
        "execution.checkpointing.interval": "10s",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "table.exec.mini-batch.enabled": "true",
        "table.exec.mini-batch.allow-latency": "1s",
        "table.exec.mini-batch.size": "20000",
        "table.local-time-zone": "UTC",
        # A failure ends the run instead of being repeated.
        "restart-strategy.type": "none",
        "rest.address": "127.0.0.1",
        "rest.port": str(port),
        "rest.bind-port": str(port),
        # Progress is asked for below; by default it is up to 10 seconds old.
        "metrics.fetcher.update-interval": f"{int(POLL_SECONDS * 1000)}ms",
    }.items():
        configuration.set_string(key, value)
    settings = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration)
    return TableEnvironment.create(settings.build())


class Progress:
    """How far the source is, with the time and the CPU seconds at which it was seen there."""

    def __init__(self, port, job):
        self.url = f"http://127.0.0.1:{port}/jobs/{job}"
        self.java = get_gateway().jvm.java.lang.ProcessHandle.current().pid()

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.java}/stat").read_text().rpartition(")")[2].split()
        own = os.times()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + own.user + own.system

    def seen(self):
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            job = json.load(answer)
        source = next(vertex for vertex in job["vertices"] if vertex["name"].startswith("Source:"))
        return source["metrics"]["read-records"], time.monotonic(), self.cpu_seconds()


def measure(progress, readings):
    """Waits until the source has taken everything: what was seen at its first record, at half, and at the last one."""
    first = half = None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        seen = progress.seen()
        if first is None and seen[0] > 0:
            first = seen
        if half is None and seen[0] >= readings // 2:
            half = seen
        if seen[0] >= readings:
            return first, half, seen
        time.sleep(POLL_SECONDS)
    sys.exit(f"not done within {PATIENCE_SECONDS} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("input", help="topic of the readings")
    parser.add_argument("output", help="topic of the results, which must be there")
    parser.add_argument("readings", type=int, help="how many readings the topic holds")
    parser.add_argument("jars", type=Path, nargs="+", help="the Kafka connector")
    given = parser.parse_args()

    port = free_port()
    tables = environment(given.jars, port)
    tables.execute_sql(SOURCE.format(bootstrap=given.bootstrap, topic=given.input))
    tables.execute_sql(SINK.format(bootstrap=given.bootstrap, topic=given.output))
    result = tables.execute_sql(WINDOWS)
    progress = Progress(port, result.get_job_client().get_job_id())
    try:
        first, half, last = measure(progress, given.readings)
    except OSError:
        # The mini cluster ends with its job: a failed job says why here.
        result.wait()
        raise
    result.wait()

    def rate(begin):
        return (last[0] - begin[0]) / (last[1] - begin[1])

    print(json.dumps({
        "rate": round(rate(first)),
        "warm_rate": round(rate(half)),
        "cpu_seconds": round(last[2] - first[2], 2),
    }))


if __name__ == "__main__":
    main()
