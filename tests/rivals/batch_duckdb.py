"""The work of a batch run, done by DuckDB on the same files: the readings of the master dataset, each identity once, into
one-minute windows of device and metric, written as Parquet. Prints one JSON object with the seconds of each variant.

`windows` leaves out the removal of duplicates, which a batch run always does; `exact` has it. Scoring and the Delta
commit are not in either.
"""

import argparse
import json
import tempfile
import time

import duckdb
from deltalake import DeltaTable

WINDOWS = """
    SELECT device_id, metric, time_bucket(INTERVAL 1 MINUTE, event_time) AS window_start,
           count(*) AS n, sum(value), min(value), max(value), stddev_samp(value),
           arg_min(value, event_time), arg_max(value, event_time)
    FROM {readings} GROUP BY ALL"""

DISTINCT = """(
    SELECT device_id, metric, event_time, arg_min(value, kafka_offset * 1000000 + kafka_index) AS value
    FROM stored GROUP BY device_id, metric, event_time, sequence)"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="folder of the Delta table of readings")
    table = DeltaTable(parser.parse_args().table)
    files = [uri.removeprefix("file://") for uri in table.file_uris()]
    database = duckdb.connect()
    database.read_parquet(files).create_view("stored")
    seconds = {}
    with tempfile.TemporaryDirectory() as directory:
        for variant, readings in {"windows": "stored", "exact": DISTINCT}.items():
            started = time.perf_counter()
            query = WINDOWS.format(readings=readings)
            database.execute(f"COPY ({query}) TO '{directory}/{variant}.parquet' (FORMAT parquet, COMPRESSION zstd)")
            seconds[variant] = time.perf_counter() - started
        seconds["rows"] = database.sql(f"SELECT count(*) FROM '{directory}/exact.parquet'").fetchall()[0][0]
    print(json.dumps(seconds))


main()
