"""Reads the tables of Wye with three programs that are not ours: the `deltalake` package, DuckDB with its Delta extension, and
Spark with Delta. Each computes the windows again from `readings`, and compares them with the finished columns of
`batch_metrics`.

It shares no code with Wye. The rules are those of the default definition: a reading's identity is device, metric, event time
and sequence, the first in the order of ingest counts, and windows are minutes.

Prints one JSON object: by reader, the numbers of readings and of windows. Exit status: 0 all are equal, 1 they differ.
"""

import argparse
import json
import sys
from pathlib import Path

# The same SQL for DuckDB and Spark.
COMPARE = """
WITH numbered AS (
    SELECT *, row_number() OVER (
        PARTITION BY device_id, metric, event_time, sequence ORDER BY ingest_time, kafka_partition, kafka_offset) AS nth
    FROM readings),
windows AS (
    SELECT device_id, metric, date_trunc('minute', event_time) AS window_start, count(*) AS n, sum(value) AS total,
           avg(value) AS mean, stddev_samp(value) AS deviation, min(value) AS least, max(value) AS most,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY value) AS median
    FROM numbered WHERE nth = 1 GROUP BY 1, 2, 3)
SELECT (SELECT count(*) FROM readings) AS readings,
       (SELECT count(*) FROM batch_metrics) AS rows_of_view,
       (SELECT count(*) FROM windows) AS windows,
       count(*) AS joined,
       sum(CASE WHEN m.count = w.n AND m.min = w.least AND m.max = w.most THEN 0 ELSE 1 END) AS other_counts,
       sum(CASE WHEN abs(m.sum - w.total) <= 1e-9 * abs(w.total) AND abs(m.avg - w.mean) <= 1e-9 * abs(w.mean)
                THEN 0 ELSE 1 END) AS other_sums,
       sum(CASE WHEN (w.n = 1 AND m.stddev IS NULL) OR abs(m.stddev - w.deviation) <= 1e-6 * w.deviation + 1e-9
                THEN 0 ELSE 1 END) AS other_deviations,
       sum(CASE WHEN abs(m.p50 - w.median) <= 0.0101 * abs(w.median) THEN 0 ELSE 1 END) AS other_quantiles,
       sum(CASE WHEN abs(m.confidence_score - CASE
                WHEN m.expected IS NULL THEN 0.9 * m.validity
                WHEN w.n < m.expected THEN w.n / m.expected * m.validity
                ELSE m.validity END) <= 1e-9 THEN 0 ELSE 1 END) AS other_scores
FROM windows w JOIN batch_metrics m
  ON m.device_id = w.device_id AND m.metric = w.metric AND m.window_start = w.window_start
"""


def with_deltalake(tables):
    import duckdb
    from deltalake import DeltaTable

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for name, path in tables.items():
        connection.register(name, DeltaTable(str(path)).to_pyarrow_table())
    cursor = connection.execute(COMPARE)
    return dict(zip([column[0] for column in cursor.description], cursor.fetchone()))


def with_duckdb(tables):
    import duckdb
    import duckdb_extension_delta

    [extension] = Path(duckdb_extension_delta.__file__).parent.glob("extensions/*/delta.duckdb_extension")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"LOAD '{extension}'")
    for name, path in tables.items():
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM delta_scan('{path}')")
    cursor = connection.execute(COMPARE)
    return dict(zip([column[0] for column in cursor.description], cursor.fetchone()))


def with_spark(tables, jars):
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.jars", ",".join(str(jar) for jar in sorted(jars.glob("*.jar"))))
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    try:
        for name, path in tables.items():
            session.read.format("delta").load(str(path)).createOrReplaceTempView(name)
        return session.sql(COMPARE).collect()[0].asDict()
    finally:
        session.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="the directory of the tables")
    parser.add_argument("--jars", type=Path, required=True, help="what scripts/spark.sh prints")
    options = parser.parse_args()
    tables = {name: (options.tables / name).resolve() for name in ("readings", "batch_metrics")}
    found = {
        "deltalake": with_deltalake(tables),
        "duckdb": with_duckdb(tables),
        "spark": with_spark(tables, options.jars),
    }
    print(json.dumps({name: {key: int(value) for key, value in numbers.items()} for name, numbers in found.items()}))
    for numbers in found.values():
        whole = numbers["joined"] == numbers["windows"] == numbers["rows_of_view"] > 0
        if not whole or any(value for key, value in numbers.items() if key.startswith("other_")):
            sys.exit(1)


if __name__ == "__main__":
    main()
