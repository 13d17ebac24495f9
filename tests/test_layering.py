"""Who may import whom, held over the imports that the sources really make."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "drivetrain"
HEAVY = ("numpy", "torch", "pyarrow", "duckdb", "onnx", "onnxruntime")
LIGHT = (
    "drivetrain",
    *(
        f"drivetrain.core.{name}"
        for name in (
            "describe",
            "durable",
            "errors",
            "job",
            "metric",
            "need",
            "schema",
            "seams",
            "site",
            "statistic",
            "system",
        )
    ),
    "drivetrain.compress.best",
    "drivetrain.compress.optimize",
    "drivetrain.compress.quantize",
    "drivetrain.train.distill",
    "drivetrain.train.prune",
)


@dataclass(frozen=True)
class Import:
    """One import statement (or a call that imports by name) within the package."""

    source: str
    target: str
    line: int
    late: bool  # inside a function or for type checkers only: can't close a circle

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(source: str, tree: ast.AST, late: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        deeper = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            deeper = True
        for target in targets_of(node):
            if target.split(".")[0] == PACKAGE.name:
                yield Import(source, target, node.lineno, late)
        yield from imports_of(source, node, deeper)


def targets_of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names, level=0):
            for alias in names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in FILES else module
        case ast.Call(args=[ast.Constant(value=str(name)), *_], func=function):
            if ast.unparse(function).split(".")[-1] in ("import_module", "__import__", "need"):
                yield name


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
IMPORTS = [found for name, tree in TREES.items() for found in imports_of(name, tree)]


def room(module: str) -> str:
    """The folder directly below the package that a module lies in, or its own name."""
    return module.partition(".")[2].partition(".")[0]


ROOMS = {room(name) for name, path in FILES.items() if path.parent != PACKAGE}
STAGES = ROOMS - {"core", "models", "apps"}


def allowed(source: str) -> set[str]:
    """The rooms that a module may import, beside its own."""
    here = room(source)
    if here in ("core", "models", "launch"):
        return {"core"}
    if here in STAGES:
        return {"core", "models"}
    if here == "apps":
        return {"core", "models", *STAGES}
    beside = {"core", "models", "declaration", "listening", "pipeline", "running", "serving"}
    beside |= {"streaming", "watching"}
    beside |= set(STAGES)
    return {*beside, "apps"} if here == "cli" else beside


def test_the_walk_sees_the_package():
    assert {"core", "models", "events", "features", "train", "compress", "registry"} <= ROOMS
    assert any(i.late for i in IMPORTS)
    assert any(not i.late for i in IMPORTS)
    assert len(IMPORTS) > len(FILES)


def test_the_walk_sees_imports_wherever_they_are():
    source = """
import numpy, drivetrain.core.batch
if TYPE_CHECKING:
    from drivetrain.core.graph import Graph
class Table:
    from drivetrain.core import sketch
    def read(self):
        from drivetrain.events import files
        return need("drivetrain.train.single", "train")
"""
    found = [(i.target, i.late) for i in imports_of("made", ast.parse(source))]
    assert found == [
        ("drivetrain.core.batch", False),
        ("drivetrain.core.graph", True),
        ("drivetrain.core.sketch", False),
        ("drivetrain.events.files", True),
        ("drivetrain.train.single", True),
    ]


# the package's own list of public names is lazy and names every room
@pytest.mark.parametrize("source", sorted(FILES.keys() - {PACKAGE.name}))
def test_a_module_imports_only_what_its_room_may(source: str):
    rooms = {room(source), *allowed(source)}
    bad = [str(i) for i in IMPORTS if i.source == source and room(i.target) not in rooms]
    assert not bad, "; ".join(bad)


def test_an_app_does_not_import_another_app():
    def app(module: str) -> str:
        return ".".join(module.split(".")[:3])

    bad = [
        str(i)
        for i in IMPORTS
        if room(i.source) == room(i.target) == "apps"
        and i.source != f"{PACKAGE.name}.apps"
        and app(i.source) != app(i.target)
    ]
    assert not bad, "; ".join(bad)


def test_nothing_below_the_apps_names_one():
    names = [name for name in FILES if name.startswith(f"{PACKAGE.name}.apps.")]
    bad = [
        f"{source} names {app}"
        for source, path in FILES.items()
        if room(source) not in ("apps", "cli")
        for app in names
        if app in path.read_text() or app.replace(".", "/") in path.read_text()
    ]
    assert not bad, "; ".join(bad)


def test_imports_are_absolute():
    bad = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not bad, "relative: " + ", ".join(bad)


def test_modules_import_one_another_in_no_circle():
    edges = {
        name: {i.target for i in IMPORTS if i.source == name and not i.late and i.target != name}
        for name in FILES
    }
    circle: list[str] = []
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle, " -> ".join(circle)


def test_no_folder_is_a_drawer_for_anything():
    drawers = {"utils", "util", "common", "helpers", "misc"}
    bad = [
        name for name in FILES if drawers & {part.removesuffix(".py") for part in name.split(".")}
    ]
    assert not bad


def test_declaring_loads_nothing_heavy():
    code = f"""
import importlib, sys
for name in {LIGHT!r}:
    importlib.import_module(name)
    heavy = [module for module in {HEAVY!r} if module in sys.modules]
    if heavy:
        raise SystemExit(f"{{name}} imports {{', '.join(heavy)}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
