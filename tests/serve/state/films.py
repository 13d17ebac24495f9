"""A made factorization that learns while it is served, for tests of the server."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import drivetrain as dt

USERS, FILMS, ROWS, K = 40, 30, 600, 8


def rows(number, seed=0, users=USERS, films=FILMS):
    """Made events: users of two tastes, who are text, and films, which are too."""
    random = np.random.default_rng(seed)
    user = random.integers(0, users, number)
    film = (random.random(number) ** 1.3 * films / 2).astype(int) * 2 + user % 2
    return [
        {"user": f"user {u}", "film": f"film {f}"} for u, f in zip(user, film % films, strict=True)
    ]


def write(folder, *, seed=0, recent=None, **online):
    """A bundle of it; another seed is another training."""
    made = rows(ROWS, seed)
    columns = {name: [row[name] for row in made] for name in ("user", "film")}
    columns["part"] = ["train"] * (ROWS - 60) + ["validate"] * 30 + ["test"] * 30
    folder.mkdir(parents=True)
    events = dt.Parquet(str(folder / "rows.parquet"))
    if recent is not None:
        columns["at"] = pa.array(1_700_000_000_000_000 + np.arange(ROWS) * 1_000_000).cast(
            pa.timestamp("us")
        )
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    if recent is not None:
        events = dt.Parquet(str(folder / "rows.parquet"), time="at").with_windows(**recent)
    names = () if recent is None else tuple(recent)
    system = dt.System(
        name="films",
        events=events.split(dt.ColumnSplit("part")),
        features=(dt.Index("user"), *(dt.Scale(name) for name in names)),
        targets=("film",),
        train=dt.ALS(
            target="film",
            k=K,
            factors=6,
            iterations=5,
            l2=1.0,
            alpha=5.0,
            seed=seed,
            online=dt.Online(**{"capacity": 5, "recent": 6, **online}),
        ),
    )
    site = dt.Site(store=str(folder / "store"), work=str(folder / "work"), device="cpu")
    bundle = dt.run(system, site)
    assert bundle is not None
    return bundle
