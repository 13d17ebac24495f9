"""The main path: events, features, train, compress, test, register; the only file that knows all.

Each stage keeps what it made under the site's work directory, named by the digest of all that it
was made from. So a run that was killed, at whatever moment, is finished by the same command, and
what has not changed is not made again.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from drivetrain.compress.apply import Given, apply
from drivetrain.core import durable, measured
from drivetrain.core.batch import BYTES_SUFFIX, PIXELS_SUFFIX, Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.claim import alone
from drivetrain.core.describe import canonical, describe, digest
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.graph import Graph
from drivetrain.core.measured import Fitted
from drivetrain.core.metric import Emit, Emitted, Metric, Note, silent
from drivetrain.core.schema import FeatureSchema, Schema
from drivetrain.core.seams import Engine, Run, Source, Split, Tabular
from drivetrain.core.site import EngineSite, Site
from drivetrain.core.spark import lingering, session
from drivetrain.core.statistic import Quantiles, Statistic, TopK
from drivetrain.core.system import System
from drivetrain.core.world import World
from drivetrain.events import prepared as laid
from drivetrain.events.prepared import Prepared, fingerprint, held, prepare
from drivetrain.events.table import Table
from drivetrain.events.windows import Kept, kept
from drivetrain.features.compile import compile
from drivetrain.features.engines.duckdb import DuckDB
from drivetrain.features.engines.spark import Spark
from drivetrain.features.examples import Examples
from drivetrain.features.transform import Transform
from drivetrain.launch.device import resolve
from drivetrain.models.bind import build
from drivetrain.registry.registry import Registry
from drivetrain.running import meter_of
from drivetrain.train.distill import Distill
from drivetrain.train.trained import Trained, exported
from drivetrain.watch.drift import prediction_statistics
from drivetrain.watch.energy import Meter
from drivetrain.watch.probes import evaluate

Stage = Literal["events", "features", "train", "compress", "test", "register"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ENGINES = ("duckdb", "spark")
"""What ``[engine] kind`` of a site may be."""
KEPT_VALUES = 1000
"""How many of a column's values a bundle keeps, to compare later events with."""
PACKAGES = ("drivetrain", "numpy", "onnx", "onnxruntime", "torch", "duckdb")


@dataclass(frozen=True)
class Data:
    """The events of a system, ready to be read as often as the stages like.

    Attributes:
        source: the declared source, or its cleaned rows in files.
        schema: the raw columns that the features read.
        targets: the columns that the loss sees.
        digest: of the rows where they lie in files, else of the declaration.
        sources: what names the rows of tables and topics that they were read from.
        kept: the windows among the columns, which a server keeps by itself.
    """

    source: Source
    schema: Schema
    targets: Schema
    digest: str
    sources: Sequence[Mapping[str, Any]] = ()
    kept: Kept | None = None

    def batches(self, split: Split) -> Iterator[Batch]:
        """Raw rows with their targets."""
        return self.source.batches(split)


@dataclass(frozen=True)
class Features:
    """The fitted features: their statistics, their graph and what it gives."""

    fitted: Fitted
    graph: Graph
    schema: FeatureSchema


def run(
    system: System,
    site: Site = Site(),
    *,
    until: Stage | None = None,
    engine: Engine | None = None,
    emit: Emit = silent,
    world: World = World(),
    meter: Meter | None = None,
) -> Bundle | None:
    """Run a system from its events to a registered bundle.

    Several processes of one world train together; each is called with ``until="train"``, when
    what comes before has been made.

    Args:
        system: what to run.
        site: where.
        until: the last stage to run; None runs all.
        engine: computes the statistics instead of the site's own.
        emit: hears every metric, progress and note.
        world: the processes that train together.
        meter: of energy, where some of this run's was spent before; None begins a new one.

    Returns:
        The registered bundle, or None when the run stopped before.

    Raises:
        ValueError: the declaration and the events do not fit; names the offender.
    """
    if until is not None and until not in STAGES:
        raise unknown("stage", until, STAGES)
    if world.size > 1 and until != "train":
        raise wrong("until", until, f"'train' in one of {world.size} processes")
    work = Path(site.work)
    # Of several processes, whoever started them counts for all; of several machines, nobody can.
    if meter is None and world.size == 1 and not world.job:
        meter = meter_of(site)

    with lingering():  # one session of Spark, if any, for all that needs it
        with _stage("events", emit, meter):
            data = make_events(system, site, emit, world)
        if until == "events":
            return None
        with _stage("features", emit, meter):
            features = make_features(system, data, work, engine or _engine(site), emit)
    if until == "features":
        return None
    with _stage("train", emit, meter):
        trained = make_model(system, data, features, site, emit, world)
    if until == "train":
        return None
    with _stage("compress", emit, meter):
        graph, report = make_smaller(system, data, features, trained, work, emit)
    if until == "compress":
        return None
    with _stage("test", emit, meter):
        candidate = _bundle(system, data, features, graph, work)
        found = _measured(system, candidate, data, emit)
    if until == "test":
        return None
    with _stage("register", emit, meter):
        fitted = candidate.fitted
        if isinstance(data.source, Tabular):
            seen = prediction_statistics(candidate, data.batches("validate"))
            fitted = {**fitted, **seen}
        bundle = _register(site, candidate, fitted, [*trained.figures, *report, *found], emit)
    if meter is not None:
        _account(site, bundle, meter, emit)
    return bundle


def _account(site: Site, bundle: Bundle, meter: Meter, emit: Emit) -> None:
    """Say what the whole run took, and keep it beside the bundle with what each stage did."""
    whole = meter.figures()
    _emit_all(whole, emit)
    emit(meter.note())
    stages = [metric for stage in meter.joules for metric in meter.figures(stage)]
    Registry(site.store).record(bundle.digest, [*stages, *whole])


# -- events ----------------------------------------------------------------------------------------


def make_events(system: System, site: Site, emit: Emit = silent, world: World = World()) -> Data:
    """Clean, join and split the events once; a source that is no table is read as it is."""
    system.check(system.events.schema)
    windows = kept(system.events, system.columns)
    names = [*system.columns, *system.targets]
    lessons = _lessons(system)
    if lessons is not None:  # the teacher may read other columns than the student
        names = list(dict.fromkeys([*names, *lessons.bundle.manifest.inputs.names]))
    source: Source = system.events
    data_digest = digest(describe(source))
    if isinstance(source, Table):
        room = Path(site.work) / "events"
        source, directory = held(source, names, room, follow=world.size > 1)
        if (directory / laid.MANIFEST).exists():
            source = Prepared.open(directory)
            emit(Note(stage="events", text=f"nothing changed: read from {directory}"))
        else:
            source = _prepared(site.engine, source, names, directory, emit)
        data_digest = source.digest
    schema = source.schema
    return Data(
        source,
        schema.select(system.columns),
        schema.select(system.targets),
        data_digest,
        source.sources if isinstance(source, Prepared) else (),
        windows,
    )


def _prepared(
    engine: EngineSite, table: Table, names: Sequence[str], directory: Path, emit: Emit
) -> Prepared:
    if engine.kind == "spark":
        from drivetrain.events.spark.laying import prepare_on

        with session(engine) as spark:
            return prepare_on(spark, table, names, directory, emit=emit)
    return prepare(table, names, directory, memory=engine.memory, threads=engine.threads, emit=emit)


def _lessons(system: System) -> Distill | None:
    """The loss that learns from a teacher, if the system's does."""
    loss = getattr(system.train, "loss", None)
    return loss if isinstance(loss, Distill) else None


def _engine(site: Site) -> Engine:
    if site.engine.kind not in ENGINES:
        raise unknown("engine", site.engine.kind, ENGINES, "[engine] kind")
    if site.engine.kind == "spark":
        return Spark(site.engine)
    return DuckDB(memory=site.engine.memory, threads=site.engine.threads)


# -- features --------------------------------------------------------------------------------------


def make_features(
    system: System, data: Data, work: Path, engine: Engine, emit: Emit = silent
) -> Features:
    """Fit the features' statistics in one pass and compile them to one graph."""
    asked = [s for feature in system.features for s in feature.statistics()]
    # What later events are compared with. A source that plays or samples is not read for it.
    watched = _watched(data.schema) if isinstance(data.source, Tabular) else []
    statistics = list(dict.fromkeys([*asked, *watched]))
    key = digest(data.digest, describe(engine), [describe(s) for s in statistics], _packages())
    path = work / "features" / f"{key}.json"
    if path.exists():
        fitted = measured.from_json(json.loads(path.read_bytes()))
    elif statistics:
        fitted = engine.aggregate(data.source, statistics, emit)
        durable.write(path, canonical(measured.to_json(fitted)).encode())
    else:
        fitted = {}
    graph, schema = compile(system.features, data.schema, fitted)
    return Features(fitted, graph, schema)


def _watched(schema: Schema) -> list[Statistic]:
    watched: list[Statistic] = []
    for field in schema:
        if field.shape or field.dtype in ("bytes", "timestamp"):
            continue  # an image has no histogram, and time moves on in every stream
        if field.dtype == "string":
            watched.append(TopK(field.name))
        else:
            watched.append(Quantiles(field.name))
    return watched


# -- train -----------------------------------------------------------------------------------------


def make_model(
    system: System,
    data: Data,
    features: Features,
    site: Site,
    emit: Emit = silent,
    world: World = World(),
) -> Trained:
    """Train the model and put it behind the feature graph: raw columns to predictions."""
    work = Path(site.work)
    examples = _examples(system, data, features, work, emit)
    device = resolve(site.device)
    tables = [fingerprint(table) for table in getattr(system.train, "tables", ())]
    made_of = (system.train, system.model, features.graph.digest, data.digest, device, _packages())
    parts = (*made_of, *tables)
    directory = work / "train" / digest(*(describe(part) for part in parts))
    directory.mkdir(parents=True, exist_ok=True)
    with alone(directory, world) if world.leads else nullcontext():
        made, noted = directory / "model.onnx", directory / "figures.json"
        if made.exists() and noted.exists():
            emit(Note(stage="train", text=f"nothing changed: read from {made}"))
            figures = [Metric(**item) for item in json.loads(noted.read_bytes())]
            _emit_all(figures, emit)
            graphs = {path.stem: Graph.load(path) for path in directory.glob("*.onnx")}
            return Trained.of(features.graph, graphs, figures)
        make: Any = getattr(system.train, "build", build)
        model = make(system.model, features.schema, seed=getattr(system.train, "seed", 0))
        if device == "cuda" and world.size > 1:
            device = f"cuda:{world.local_rank}"
        figures: list[Metric] = []

        def noting(item: Emitted) -> None:
            if isinstance(item, Metric) and item.step is None and item.repeatable:
                figures.append(item)
            emit(item)

        privacy = getattr(system.train, "privacy", None)
        if privacy is not None and world.leads:
            fit = [feature.name for feature in system.features if feature.statistics()]
            for item in privacy.unprotected({s.column for s in features.fitted}, fit):
                noting(item)
        lent = Run(directory=directory, emit=noting, device=device, world=world)
        fitted = system.train.fit(model, examples, lent)
        graphs = exported(system.train, fitted, features.schema.tensors)
        if world.leads:
            durable.write(noted, json.dumps([vars(figure) for figure in figures]).encode())
            for name, graph in graphs.items():  # the model last: where it lies, all do
                graph.save(directory / f"{name}.onnx")
        return Trained.of(features.graph, graphs, figures)


def _examples(system: System, data: Data, features: Features, work: Path, emit: Emit) -> Examples:
    """What the strategy sees: features, targets and what a teacher says, made once for each."""
    source = data.source
    apart = getattr(system.train, "reads", ())
    targets = data.targets.select(n for n in data.targets.names if n not in apart)
    parts: list[object] = [features.graph.digest, data.digest, describe(targets)]
    lessons = _lessons(system)
    if lessons is not None:
        taught = lessons.taught(source)
        source, targets = taught, Schema((*targets, taught.field))
        parts += [lessons.bundle.digest, taught.column]
    return Examples(
        source,
        # one thread: batches go through side by side, which costs half of what shared ones do
        Transform(features.graph, features.schema, threads=1),
        targets,
        cache=work / "examples" / digest(*parts) if isinstance(data.source, Tabular) else None,
        emit=emit,
    )


# -- compress --------------------------------------------------------------------------------------


def make_smaller(
    system: System,
    data: Data,
    features: Features,
    trained: Trained,
    work: Path,
    emit: Emit = silent,
) -> tuple[Graph, list[Metric]]:
    """Apply each pass, measured on the validation split; one that breaks a bound is refused.

    A model that its strategy made smaller is held against what it was, as the first of them.
    """
    graph, passes = trained.graph, list(system.compress)
    if trained.before is not None:
        passes.insert(0, Given(trained.made_by, graph))
        graph = trained.before
    if not passes:
        return graph, []
    made = (graph.digest, trained.graph.digest, data.digest)
    parts = (*made, system.compress, system.probes, _packages())
    kept = work / "compress" / digest(*(describe(part) for part in parts))
    if kept.is_dir():
        emit(Note(stage="compress", text=f"nothing changed: read from {kept}"))
        report = [Metric(**item) for item in json.loads((kept / "report.json").read_bytes())]
        _emit_all(report, emit)
        return Graph.load(kept / "model.onnx"), report

    def quality(candidate: Graph) -> dict[str, Metric]:
        bundle = _bundle(system, data, features, candidate, work)
        found = evaluate(bundle, system.probes, data.batches("validate"), prefix="")
        return {metric.name: metric for metric in found}

    graph, report = apply(graph, passes, quality, lambda: data.batches("validate"), emit)
    with durable.directory(kept) as temporary:
        graph.save(temporary / "model.onnx")
        durable.write(temporary / "report.json", json.dumps([vars(m) for m in report]).encode())
    return graph, report


# -- test ------------------------------------------------------------------------------------------


def _measured(system: System, candidate: Bundle, data: Data, emit: Emit) -> list[Metric]:
    """The probes' figures on the test split; a source is not asked for rows that nobody reads."""
    if not system.probes:
        return []
    found = evaluate(candidate, system.probes, data.batches("test"), prefix="test/")
    _emit_all(found, emit)
    return found


# -- bundle ----------------------------------------------------------------------------------------


def _bundle(system: System, data: Data, features: Features, graph: Graph, work: Path) -> Bundle:
    """A candidate: a whole bundle, not yet registered and without figures."""
    inputs = data.schema.select(_used(graph, data.schema))
    parents = {
        "events": data.digest,
        "system": system.digest,
        "features": features.graph.digest,
    }
    lessons = _lessons(system)
    if lessons is not None:
        parents["teacher"] = lessons.bundle.digest
    windows = data.kept and data.kept.among(inputs.names)
    manifest = Manifest(
        name=system.name,
        inputs=inputs,
        outputs=graph.session(threads=1).outputs,
        targets=data.targets,
        features=features.schema,
        parents=parents,
        sources=data.sources,
        system=system.describe(),
        packages=_packages(),
        windows=windows.windows.to_json() if windows else {},
        window_schema=windows.schema if windows else Schema(()),
    )
    made_of = (graph.digest, system.digest, data.digest, data.sources, _packages())
    path = work / "candidates" / digest(*made_of)
    return (
        Bundle.open(path)
        if path.exists()
        else Bundle.write(path, graph, manifest, measured.trimmed(features.fitted, KEPT_VALUES))
    )


def _used(graph: Graph, schema: Schema) -> list[str]:
    taken = set(graph.inputs.names)
    forms = ("", BYTES_SUFFIX, PIXELS_SUFFIX)
    return [n for n in schema.names if any(n + form in taken for form in forms)]


def _register(
    site: Site, candidate: Bundle, fitted: Fitted, metrics: Sequence[Metric], emit: Emit
) -> Bundle:
    manifest = dataclasses.replace(
        candidate.manifest,
        # A figure that is not a number (an AUC of one class) is absent, and its bound then broken.
        metrics={m.name: m.value for m in metrics if m.repeatable and m.value == m.value},
        bounds={
            m.name: (m.at_least, m.at_most)
            for m in metrics
            if m.at_least is not None or m.at_most is not None
        },
        files={},
    )
    registry = Registry(site.store)
    bundle = registry.write(candidate.graph, manifest, fitted)
    registry.record(bundle.digest, [m for m in metrics if not m.repeatable])
    emit(Note(stage="register", text=f"bundle {bundle.digest} in {site.store}"))
    return bundle


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# -- stages ----------------------------------------------------------------------------------------


def _emit_all(metrics: Iterable[Metric], emit: Emit) -> None:
    for metric in metrics:
        emit(metric)


@contextmanager
def _stage(name: Stage, emit: Emit, meter: Meter | None) -> Iterator[None]:
    begin = time.perf_counter()
    emit(Note(stage=name, text="begins"))
    with nullcontext() if meter is None else meter.stage(name):
        yield
    seconds = time.perf_counter() - begin
    emit(Metric(name=f"{name}/seconds", value=seconds, repeatable=False))
    if meter is not None:
        _emit_all(meter.figures(name), emit)
