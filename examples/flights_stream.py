"""Flights as they leave, out of Kafka into a Delta table, each told how late others have just been.

A message is JSON, sent as a flight leaves. The steps are an ordinary table's: over files they give
the same rows, to the last bit.

    BROKERS=127.0.0.1:9092 drivetrain run examples/flights_stream.py
    drivetrain watch examples/flights_stream.py
"""

import os

from flights import airports, planes

import drivetrain as dt
from drivetrain import col
from drivetrain.events.table import Table


def told(departures: Table) -> Table:
    """Departures with their plane, the zone they fly to, and what was known as they left."""
    return (
        departures.where(col("dep_delay").is_not_null())
        .join(planes, on="tailnum")
        .join(airports, on="dest")
        .with_columns(late=(col("dep_delay") > 15).cast("int64"))
        .with_windows(
            lateness="10m",  # so much later than the latest one a message may come
            carrier_delay=dt.Window("dep_delay", by="carrier", stat="mean", over="3h"),
            origin_delay=dt.Window("dep_delay", by="origin", stat="mean", over="3h"),
            plane_delay=dt.Window("dep_delay", by="tailnum", stat="last", over="12h"),
            origin_left=dt.Window(by="origin", stat="count", over="1h"),
        )
    )


departures = dt.Kafka(
    "departures",
    servers=os.environ.get("BROKERS", "127.0.0.1:9092"),
    types={
        "left_at": "timestamp",
        "carrier": "string",
        "origin": "string",
        "dest": "string",
        "tailnum": "string",
        "dep_delay": "float64",
    },
    time="left_at",
)

stream = dt.Stream(
    name="departures",
    events=told(departures),
    into="lake/departures",
    dead="lake/dead_departures",
    partition_by=("day(left_at)",),
)
