"""Which films will somebody watch next? Recall, ranking and learning while it serves, on real data.

MovieLens 100k: 100,000 ratings of 1,682 films by 943 people, in seven months of 1997 and 1998. It
comes out of RecBole's wheel, which pip fetches once into a cache; nothing of it is kept here.
GroupLens allows research use, asks to be cited (Harper and Konstan, "The MovieLens Datasets", 2015)
and allows neither redistribution nor commercial use without permission.

Each person's last film tests and the one before validates, so what is asked about always lies in
the future of what is known. The history is a window: true to the moment in training, and kept by
the server afterwards. `drivetrain run examples/recommender.py` trains, measures and registers;
`drivetrain serve` then takes `{"user": 196, "age": 49, …, "k": 10}`, and each film that
`/observe` is told of changes the very next answer.
"""

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import drivetrain as dt
from drivetrain.apps.recommender import Diverse, Ranker, Recommender
from drivetrain.models import Attention, DCNv2

WHEEL = "recbole==1.2.1"
INSIDE = "recbole/dataset_example/ml-100k/ml-100k."
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "drivetrain" / "films"


def text(name: str) -> bytes:
    """A file of the data: of RecBole where it is installed, else of its wheel."""
    spec = find_spec("recbole")
    if spec is not None and spec.origin is not None:
        return (Path(spec.origin).parent.parent / f"{INSIDE}{name}").read_bytes()
    if not list(CACHE.glob("recbole-*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL]
        subprocess.run([*pip, "--disable-pip-version-check", "--dest", str(CACHE)], check=True)
    with zipfile.ZipFile(next(CACHE.glob("recbole-*.whl"))) as files:
        return files.read(f"{INSIDE}{name}")


def write(path: Path) -> Path:
    """Ratings in order of time with who gave them, and films, as Parquet."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    def table(name: str) -> "pa.Table":
        tabs = pc.ParseOptions(delimiter="\t", quote_char=False)
        found = pc.read_csv(pa.BufferReader(text(name)), parse_options=tabs)
        return found.rename_columns([column.partition(":")[0] for column in found.column_names])

    path.mkdir(parents=True, exist_ok=True)
    by_time = [("timestamp", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")]
    ratings = table("inter").sort_by(by_time)
    seconds = ratings["timestamp"].cast(pa.int64()).to_numpy()
    part = dt.last_parts(ratings["user_id"].to_numpy(), seconds)
    ratings = ratings.append_column("at", pa.array(seconds * 1_000_000, pa.timestamp("us")))
    pq.write_table(table("user"), path / "people.parquet")
    films = table("item")
    years = [int(y) if y.isdigit() else None for y in films["release_year"].to_pylist()]
    pq.write_table(films.append_column("year", pa.array(years)), path / "films.parquet")
    pq.write_table(ratings.append_column("part", pa.array(part)), path / "ratings.part")
    (path / "ratings.part").replace(path / "ratings.parquet")  # the last: where it lies, all do
    return path


home = CACHE if (CACHE / "ratings.parquet").exists() else write(CACHE)

people = (
    dt.Parquet(str(home / "people.parquet"))
    .rename(user="user_id", job="occupation")
    .select("user", "age", "gender", "job")
)
films = (
    dt.Parquet(str(home / "films.parquet"))
    .rename(item="item_id", genres="class", title="movie_title")
    .select("item", "title", "genres", "year")
)
watched = (
    dt.Parquet(str(home / "ratings.parquet"), time="at")
    .rename(user="user_id", item="item_id")
    .with_columns(k=dt.lit(None).cast("int64"))
    .join(people, on="user")
    .with_windows(
        recent=dt.Window("item", by="user", stat="recent", rows=10),
        since=dt.Window(by="user", stat="since"),
        watched=dt.Window(by="user", stat="count"),
    )
    .split(dt.ColumnSplit("part"))
)

system = dt.System(
    name="films",
    events=watched,
    features=(
        dt.Index("user", size=100_000),
        *(dt.Scale("age"), dt.Index("gender"), dt.Index("job")),
        *(dt.Log("since"), dt.Log("watched")),
    ),
    targets=("item",),
    train=Recommender(
        target="item",
        k=20,
        candidates=100,
        limit="k",
        recall=dt.Fused(
            target="item",
            user="user_index",
            methods=(
                dt.EASE(target="item", l2=300.0, even=0.5),
                dt.ALS(target="item", alpha=4.0, l2=40.0, online=dt.Online(capacity=100)),
            ),
            seen_in=("train", "validate"),
        ),
        items=films,
        item_features=(dt.Scale("year"), dt.Text("genres", bins=64, ngrams=(1,), length=8)),
        ranking=Ranker(
            model=DCNv2(
                layers=1,
                rank=8,
                hidden=(16,),
                attention=(Attention(history="history", item="item", hidden=(16,)),),
            ),
            train=dt.Single(
                loss=dt.Listwise("had"),
                epochs=4,
                batch_size=64,
                lr=3e-3,
                early_stopping=dt.EarlyStopping(patience=2),
            ),
            history="recent",
        ),
        rerank=(Diverse(0.05),),
    ),
    probes=(dt.Ranking(k=20, recall=0.12, ndcg=0.045), dt.Latency(p50_ms=50.0)),
)
