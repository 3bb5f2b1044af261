"""The oracle for the machine temperature recording of the Numenta benchmark: one sensor, a value every five minutes.

The recording goes back in time once, so some times come twice with different values: the first in the file counts. Times
are read as UTC. The recording names no device and no metric; the names are those of its mapping in `datasets/`.
"""

import windows

if __name__ == "__main__":
    parser = windows.arguments(__doc__)
    parser.add_argument("--device", default="nab-machine", help="default %(default)s")
    parser.add_argument("--metric", default="temperature", help="default %(default)s")
    options = parser.parse_args()
    device, metric = (name.replace("'", "''") for name in (options.device, options.metric))
    windows.run(
        f"""
        SELECT '{device}' AS device, '{metric}' AS metric, value::DOUBLE AS value, row_number() OVER () AS file_order,
               epoch_us(strptime("timestamp", '%Y-%m-%d %H:%M:%S')) AS event_time
        FROM read_csv($files, header = true, all_varchar = true)
        WHERE value IS NOT NULL""",
        options,
    )
