"""The oracle for the Beijing multi-site air quality data set: a row for each hour and station, eleven numeric columns.

Times are local, eight hours ahead of UTC all year, in four columns; `NA` is a missing value; the device is the station
and a metric has the name of its column.
"""

import windows

COLUMNS = ["PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM"]

READINGS = f"""
    SELECT station AS device, metric, value, file_order,
           epoch_us(make_timestamp(year::BIGINT, month::BIGINT, day::BIGINT, hour::BIGINT, 0, 0.0) - INTERVAL 8 HOUR)
               AS event_time
    FROM (
        SELECT station, year, month, day, hour, row_number() OVER () AS file_order,
               {", ".join(f'"{column}"::DOUBLE AS "{column}"' for column in COLUMNS)}
        FROM read_csv($files, header = true, all_varchar = true, nullstr = 'NA')
    ) UNPIVOT (value FOR metric IN ({", ".join(f'"{column}"' for column in COLUMNS)}))"""

if __name__ == "__main__":
    windows.run(READINGS, windows.arguments(__doc__).parse_args())
