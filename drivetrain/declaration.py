"""Reads the file that declares a system or a stream, and changes single values of it by name."""

import dataclasses
import importlib.util
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.site import Site
from drivetrain.core.system import System

if TYPE_CHECKING:
    from drivetrain.events.stream import Stream

Declared = TypeVar("Declared", System, "Stream", "System | Stream", None)


def load(file: Path) -> System:
    """Run a Python file and take the one system that it declares.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as :func:`declared`; or it declares a stream.
    """
    return only_system(declared(file), str(file))


def only_system(found: "System | Stream", where: str) -> System:
    """What was declared, where only a system will do.

    Raises:
        ValueError: it is a stream.
    """
    if not isinstance(found, System):
        raise wrong(where, f"the stream {found.name!r}", "a System")
    return found


def declared(file: Path) -> "System | Stream":
    """Run a Python file and take the one system or stream that it declares.

    A file that declares several calls the one to run ``system``, or ``stream``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it declares none, or several and none of those names; or it is no valid Python,
            or ends in an error.
    """
    from drivetrain.events.stream import Stream

    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    name = f"drivetrain_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise wrong("FILE", str(file), "a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that the source of what it defines can be found and digested
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{_place(file, error)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    held = vars(module).items()
    found = {key: value for key, value in held if isinstance(value, System | Stream)}
    for name in ("system", "stream"):
        if name in found:
            return found[name]
    if len({id(value) for value in found.values()}) != 1:
        allowed = "one System or Stream, or one of them called 'system' or 'stream'"
        raise wrong(f"{file}", sorted(found) or "no System", allowed)
    return next(iter(found.values()))


def _place(file: Path, error: Exception) -> str:
    """The line of the file that an error came from."""
    if isinstance(error, SyntaxError):
        return f"{file}, line {error.lineno}" if error.filename == str(file) else str(file)
    lines = [
        number
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(file)
    ]
    return f"{file}, line {lines[-1]}" if lines else str(file)


def with_settings(system: Declared, site: Site, settings: Sequence[str]) -> tuple[Declared, Site]:
    """The system, or stream, and the site with single values changed.

    Args:
        system: or a stream; None where only a site's values may be changed.
        site: where it runs.
        settings: each ``KEY=VALUE``; a key is a path of attributes (a tuple's entries by
            number), such as ``train.lr=0.01`` or ``serve.port=0``; a value is JSON or plain text.

    Raises:
        ValueError: no such key (the error suggests the nearest), or a value of another type.
    """
    of_site = {field.name for field in dataclasses.fields(Site)}
    of_system: set[str] = set()
    if system is not None:
        of_system = {field.name for field in dataclasses.fields(system)}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise wrong("--set", setting, "KEY=VALUE, such as train.lr=0.01")
        first = key.split(".")[0]
        if first not in of_site | of_system:
            raise unknown("key", first, of_site | of_system, f"--set {setting}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if first in of_site:
            site = _replace(site, key.split("."), value, setting)
        else:
            system = _replace(system, key.split("."), value, setting)
    return system, site


def _replace(holder: Any, path: Sequence[str], value: Any, setting: str) -> Any:
    where = f"--set {setting}"
    head, *rest = path
    if isinstance(holder, tuple):
        entries = list(holder)
        if not head.isdigit() or int(head) >= len(entries):
            raise wrong(where, head, f"a number below {len(entries)}")
        entries[int(head)] = _put(entries[int(head)], rest, value, setting)
        return tuple(entries)
    if not dataclasses.is_dataclass(holder) or isinstance(holder, type):
        raise wrong(where, f"{type(holder).__name__}.{head}", "a path of declared attributes")
    names = [field.name for field in dataclasses.fields(holder) if field.init]
    if head not in names:
        raise unknown("key", head, names, where)
    return dataclasses.replace(holder, **{head: _put(getattr(holder, head), rest, value, setting)})


def _put(now: Any, rest: Sequence[str], value: Any, setting: str) -> Any:
    if rest:
        return _replace(now, rest, value, setting)
    if isinstance(now, tuple) and isinstance(value, list):
        return tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(now, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if now is not None and type(value) is not type(now):
        raise wrong(f"--set {setting}", value, f"{type(now).__name__}, as {now!r} is")
    return value
