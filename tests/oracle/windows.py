"""The independent oracle: computes every 1-minute window with DuckDB from the source files, and compares it with the answers
of a running Wye.

It shares no code with Wye. Each data set has a program in this folder, which reads its source files with SQL. The rules for
all data sets are here:

- a reading's identity is device, metric and event time; the first in file order counts;
- a window is [start, start + 60 s), aligned to the epoch;
- count, min, max, first and last must be equal to the bit; sum within a bound, relative to the sum of magnitudes.

Exit status: 0 the answers are equal, 1 they differ, 2 they could not be compared.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request

import duckdb
import pyarrow as pa

ARROW_STREAM = "application/vnd.apache.arrow.stream"
WINDOW_MICROS = 60_000_000
SHOWN = 20


def arguments(description):
    """The arguments of every data set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, nargs="+", metavar="GLOB", help="source files, .csv or .csv.gz")
    parser.add_argument("--url", help="a running Wye, http://HOST:PORT; without it, only the expectation is printed")
    parser.add_argument("--devices", nargs="+", metavar="NAME", help="only these devices; default: all in the files")
    parser.add_argument("--sum-tolerance", type=float, default=1e-9, help="relative bound for sums; default %(default)s")
    return parser


def run(readings_sql, options):
    """Compares and exits. `readings_sql` selects device, metric, event_time (microseconds since the epoch), value
    (never null) and file_order from the files named by the parameter $files."""
    database = duckdb.connect()
    # One thread reads the lines in order, since the first reading with an identity counts.
    database.execute("SET threads = 1")
    database.execute("SET memory_limit = '3GB'")
    rows, readings, windows = expect(database, readings_sql, options)
    if options.url is None:
        print(json.dumps({"rows": rows, "readings": readings, "windows": windows}))
        sys.exit(0)
    try:
        query(database, options.url)
    except (urllib.error.URLError, ConnectionError, TimeoutError, pa.ArrowException, duckdb.Error) as error:
        print(f"cannot query {options.url}: {error}", file=sys.stderr)
        sys.exit(2)
    differences = compare(database, options.sum_tolerance)
    print(f"{windows} windows of {readings} readings compared, {differences} differences")
    sys.exit(1 if differences else 0)


def expect(database, readings_sql, options):
    """Fills the table `expected`. Returns the numbers of readings in the files, of distinct readings, and of windows."""
    database.execute(f"CREATE TABLE source AS {readings_sql}", {"files": options.data})
    if options.devices is not None:
        database.execute("DELETE FROM source WHERE NOT list_contains($1, device)", [options.devices])
    database.execute("""
        CREATE TABLE readings AS
        SELECT device, metric, event_time, arg_min(value, file_order) AS value
        FROM source GROUP BY device, metric, event_time""")
    database.execute(f"""
        CREATE TABLE expected AS
        SELECT device, metric,
               event_time - ((event_time % {WINDOW_MICROS}) + {WINDOW_MICROS}) % {WINDOW_MICROS} AS window_start,
               count(*) AS n, fsum(value) AS total, fsum(abs(value)) AS magnitude,
               min(value) AS least, max(value) AS greatest,
               arg_min(value, event_time) AS earliest, arg_max(value, event_time) AS latest
        FROM readings GROUP BY ALL""")
    rows = database.execute("SELECT count(*) FROM source").fetchone()[0]
    readings = database.execute("SELECT count(*) FROM readings").fetchone()[0]
    windows = database.execute("SELECT count(*) FROM expected").fetchone()[0]
    if readings == 0:
        print(f"no readings in {' '.join(options.data)}", file=sys.stderr)
        sys.exit(2)
    return rows, readings, windows


def query(database, url):
    """Fills the table `served` from `unified_series`, as a stream of Arrow batches."""
    devices = [row[0] for row in database.execute("SELECT DISTINCT device FROM expected").fetchall()]
    names = ", ".join("'" + device.replace("'", "''") + "'" for device in devices)
    sql = f"""
        SELECT device_id, metric, window_start, window_end, "count", "sum", "min", "max", "first", "last"
        FROM unified_series WHERE device_id IN ({names})"""
    request = urllib.request.Request(
        url.rstrip("/") + "/v1/sql",
        data=json.dumps({"sql": sql}).encode(),
        headers={"Content-Type": "application/json", "Accept": ARROW_STREAM},
    )
    try:
        response = urllib.request.urlopen(request, timeout=300)
    except urllib.error.HTTPError as error:
        print(f"{url} answers {error.code}: {error.read(2000).decode(errors='replace')}", file=sys.stderr)
        sys.exit(2)
    with response:
        stream = pa.ipc.open_stream(response)
        # Rollups, which have longer windows, are left out.
        database.register("stream", stream)
        database.execute(f"""
            CREATE TABLE served AS
            SELECT device_id AS device, metric, epoch_us(window_start) AS window_start, "count" AS n, "sum" AS total,
                   "min" AS least, "max" AS greatest, "first" AS earliest, "last" AS latest
            FROM stream WHERE epoch_us(window_end) - epoch_us(window_start) = {WINDOW_MICROS}""")
        database.unregister("stream")


def compare(database, sum_tolerance):
    """Returns the number of windows that differ, and prints the first of them. A window that is served twice differs."""
    database.execute(f"""
        CREATE VIEW differing AS
        SELECT * FROM (
            SELECT coalesce(e.device, s.device) AS device, coalesce(e.metric, s.metric) AS metric,
                   make_timestamp(coalesce(e.window_start, s.window_start)) AS window_start,
                   e.n AS expected_n, s.n, e.total AS expected_total, s.total,
                   e.least AS expected_least, s.least, e.greatest AS expected_greatest, s.greatest,
                   e.earliest AS expected_earliest, s.earliest, e.latest AS expected_latest, s.latest,
                   CASE WHEN s.device IS NULL THEN 'missing'
                        WHEN e.device IS NULL THEN 'unexpected'
                        WHEN s.copies > 1 THEN 'served ' || s.copies || ' times'
                        WHEN s.n IS DISTINCT FROM e.n THEN 'count'
                        WHEN s.least IS DISTINCT FROM e.least THEN 'min'
                        WHEN s.greatest IS DISTINCT FROM e.greatest THEN 'max'
                        WHEN s.earliest IS DISTINCT FROM e.earliest THEN 'first'
                        WHEN s.latest IS DISTINCT FROM e.latest THEN 'last'
                        WHEN s.total IS NULL OR abs(s.total - e.total) > {sum_tolerance!r} * e.magnitude THEN 'sum'
                   END AS difference
            FROM expected e FULL OUTER JOIN (
                SELECT device, metric, window_start, count(*) AS copies, any_value(n) AS n, any_value(total) AS total,
                       any_value(least) AS least, any_value(greatest) AS greatest,
                       any_value(earliest) AS earliest, any_value(latest) AS latest
                FROM served GROUP BY device, metric, window_start
            ) s USING (device, metric, window_start))
        WHERE difference IS NOT NULL""")
    kinds = database.execute("SELECT difference, count(*) FROM differing GROUP BY ALL ORDER BY ALL").fetchall()
    if kinds:
        print("differences: " + ", ".join(f"{kind}: {count}" for kind, count in kinds))
        shown = database.execute(f"SELECT * FROM differing ORDER BY device, metric, window_start LIMIT {SHOWN}")
        columns = [column[0] for column in shown.description]
        for row in shown.fetchall():
            print("  " + " ".join(f"{column}={value}" for column, value in zip(columns, row)))
    return sum(count for _, count in kinds)
