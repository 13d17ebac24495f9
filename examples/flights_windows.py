"""The flights again, told how late others have just been: windows, which a server keeps by itself.

Each flight is asked about at its scheduled departure. What it is told is what was known by then: a
departure's delay from the moment at which that flight left, an arrival's from when it arrived.
"""

from flights import FILES, scheduled, to_predict
from flights import system as plain

import drivetrain as dt
from drivetrain import col

zones = dt.CSV(FILES / "airports.csv").select("faa", "tz", "dst").rename(zone="tz", saving="dst")

# The file has each departure as an instant and as New York's clock showed it: what lies between the
# two is New York's summer time, exactly. Arizona and Hawaii have none, nor have the four airports
# in the Caribbean that the table lacks, which keep UTC-4.
summer = (col("departs_at") - dt.hours(4) == col("at")).cast("int64")
saves = (col("saving") == "A").fill_null(False).cast("int64")
clock = col("sched_arr_time") // 100 * 60 + col("sched_arr_time") % 100
block = (
    clock
    - (col("hour") * 60 + col("minute"))
    - (col("zone").fill_null(-4).cast("int64") * 60 + 60 * saves * summer)
    + (60 * summer - 300)
) % 1440

timed = (
    scheduled.join(zones, on={"dest": "faa"})
    .with_columns(
        departs_at=col("time_hour") + dt.minutes(col("minute")),
        at=dt.make_timestamp(col("year"), col("month"), col("day"), col("hour"), col("minute")),
    )
    .with_columns(
        # One that was cancelled never left, and is never known to have left. One that left early
        # counts from its scheduled departure on: at that very moment nobody is told of it, and so
        # no flight is told of itself.
        left_at=col("departs_at") + dt.minutes(col("dep_delay").clip(0)),
        # Minutes in the schedule from gate to gate, and how much later than that it was.
        arrived_at=col("departs_at") + dt.minutes(block) + dt.minutes(col("arr_delay")),
    )
    # Before the flights without an outcome are left out: they were in the schedule like others.
    .with_windows(
        time="departs_at",
        lateness="1h",  # so much later than it was known a server may be told of a flight
        carrier_delay=dt.Window("dep_delay", by="carrier", stat="mean", over="3h", known="left_at"),
        origin_delay=dt.Window("dep_delay", by="origin", stat="mean", over="3h", known="left_at"),
        dest_delay=dt.Window("arr_delay", by="dest", stat="mean", over="3h", known="arrived_at"),
        plane_delay=dt.Window("dep_delay", by="tailnum", stat="last", over="12h", known="left_at"),
        origin_scheduled=dt.Window(by="origin", stat="count", over="1h"),
        origin_left=dt.Window("dep_delay", by="origin", stat="count", over="1h", known="left_at"),
    )
    # What the prediction's own columns are made of is made again there.
    .drop("zone", "saving", "at")
)

DELAYS = ("carrier_delay", "origin_delay", "dest_delay", "plane_delay")
COUNTS = ("origin_scheduled", "origin_left")

system = dt.System(
    name="flights-windows",
    events=to_predict(timed),
    features=(
        *plain.features,
        *(dt.Scale(column) for column in (*DELAYS, *COUNTS)),
        *(dt.Bucket(column, bins=16) for column in (*DELAYS, *COUNTS)),
        *(dt.Missing(column) for column in DELAYS),
    ),
    model=plain.model,
    targets=plain.targets,
    train=plain.train,
    compress=plain.compress,
    probes=(
        dt.AUC(at_least=0.68),
        dt.LogLoss(at_most=0.54),
        dt.Calibration(),
        dt.Latency(p50_ms=2.0),
    ),
)
