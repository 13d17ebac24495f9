"""What is watched on a site: an alias or a stream, the pages for others, the rows of a test."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Schema
from drivetrain.core.site import Site
from drivetrain.core.system import System

if TYPE_CHECKING:
    from drivetrain.core.bundle import Bundle
    from drivetrain.watch.live import Watch
    from drivetrain.watch.streams import StreamWatch

ROWS = 65_536
"""Rows that are measured at a time."""


def watch_of(site: Site, what: str, url: str | None) -> "Watch | StreamWatch":
    """What looks at a served alias, or at a stream by its name or the file that declares it.

    Args:
        site: where it runs.
        what: the alias, the stream's name, or a file.
        url: the server's address instead of the site's.

    Raises:
        ValueError: there is neither an alias nor a stream of that name.
    """
    from drivetrain.declaration import declared
    from drivetrain.serving import registry_of
    from drivetrain.streaming import stream_watch
    from drivetrain.watch.live import Watch

    if what.endswith(".py"):
        found = declared(Path(what))
        if isinstance(found, System):
            raise wrong("watch", f"the system {found.name!r}", "an alias, or a stream")
        return stream_watch(site, found.name)
    registry = registry_of(site)
    if what not in registry.aliases() and (follows := stream_watch(site, what)).begun:
        return follows
    bundle = registry.open(what)
    host = f"[{site.serve.host}]" if ":" in site.serve.host else site.serve.host  # IPv6
    scheme = "https" if site.serve.tls_certificate else "http"
    url = url or f"{scheme}://{host}:{site.serve.port}"
    feedback = Path(site.serve.feedback) / what if site.serve.feedback else None
    return Watch(url, bundle, feedback, model=what, token=site.serve.token())


def pages_of(
    site: Site, what: str, bundle: "Bundle | None", dashboard: str | None, alerts: str | None
) -> dict[str, str]:
    """The dashboard and the alert rules that were asked for, by the path to write them to.

    Args:
        site: knows its aliases.
        what: the bundle, as it was named.
        bundle: None where a system was named.
        dashboard: where to write it, if it is asked for.
        alerts: the same of the rules.

    Raises:
        ValueError: there is no bundle.
    """
    from drivetrain.serving import registry_of
    from drivetrain.watch.alerts import Alerts
    from drivetrain.watch.dashboard import dashboard_json

    if not dashboard and not alerts:
        return {}
    if bundle is None:
        allowed = "a bundle or an alias: bounds and columns are known once a system has run"
        raise wrong("show --dashboard and --alerts", what, allowed)
    model = what if what in registry_of(site).aliases() else None
    pages: dict[str, str] = {}
    if dashboard:
        pages[dashboard] = dashboard_json(bundle.manifest, model)
    if alerts:
        pages[alerts] = Alerts().render(bundle.manifest, model)
    return pages


def rows_to_test(site: Site, bundle: "Bundle", data: str | None) -> Iterator[Any]:
    """The rows to test a bundle with: those in a file, or the test split that it came from.

    Raises:
        ValueError: no file is named, and its events are no longer in the site's work directory.
    """
    if data:
        from drivetrain.core.batch import Batch
        from drivetrain.events.files import Parquet
        from drivetrain.events.reading.read import read

        wanted = Schema((*bundle.manifest.inputs, *bundle.manifest.targets))
        tables = read(Parquet(data), wanted, ROWS)
        return (Batch.from_arrow(table, wanted) for table in tables)
    from drivetrain.events.prepared import find

    wanted = bundle.manifest.parents.get("events", "")
    kept = find(Path(site.work, "events"), wanted)
    if kept is not None:
        return kept.batches("test")
    raise ValueError(
        f"the events {wanted[:12]} that this bundle was made of are not in {site.work}: give the "
        "rows to test with by --data."
    )
