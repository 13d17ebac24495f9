"""The command line: from checking a declaration to watching what is served."""

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.core.job import LOST
from drivetrain.core.metric import Metric
from drivetrain.core.site import Site
from drivetrain.core.system import System
from drivetrain.core.world import World
from drivetrain.declaration import declared, only_system, with_settings
from drivetrain.listening import listening

if TYPE_CHECKING:
    from drivetrain.core.bundle import Bundle
    from drivetrain.events.stream import Stream
    from drivetrain.registry.registry import Registry
    from drivetrain.watch.energy import Meter

STAGES = ("events", "features", "train", "compress", "test", "register")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 when all is well; 1 when `run` or `test` finds a bound broken, or `watch --once` a
        problem; 2 for what cannot be done, such as promoting a bundle whose bounds do not hold.
    """
    options = _parser().parse_args(arguments)
    # Threads that wait for each other sleep instead of spinning: on a machine that others use too,
    # two spinning threads train at a third of the speed of one. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        status = options.verb(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has read enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if options.traceback:
            raise
        _fail(options, error)
        # Whoever lost its company, or was asked to end, says so by its status: the same command
        # goes on from there.
        if not isinstance(error, ConnectionError | InterruptedError):
            return 2
        if World.of().size > 1:  # threads that wait for a lost process would abort this one
            sys.stderr.flush()
            os._exit(LOST)
        return LOST
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drivetrain",
        description="One declared machine-learning system, from events to served predictions.",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[Any], int], about: str, *positional: str) -> Any:
        it = verbs.add_parser(name, help=about, description=about)
        for argument in positional:
            it.add_argument(argument.lower(), metavar=argument)
        it.add_argument("--on", metavar="SITE", help="a site's TOML file: where to run")
        it.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change one value of the system or the site, such as train.lr=0.01",
        )
        it.add_argument("--json", action="store_true", help="one JSON object a line")
        it.add_argument("--traceback", action="store_true", help="show where an error came from")
        it.set_defaults(verb=run)
        return it

    verb("check", _check, "hold a declaration against its events, without running it", "FILE")
    about = "run a system from its events to a registered bundle, or a stream until it is ended"
    run = verb("run", _run, about, "FILE")
    run.add_argument("--until", choices=STAGES, help="stop after this stage")
    run.add_argument("--dry-run", action="store_true", help="print what the launcher would start")
    anew = "of a stream: accept a topic that was made anew, or messages that expired unread"
    run.add_argument("--from-start", action="store_true", help=anew)
    end = "of a stream: stop behind the messages that there are now"
    run.add_argument("--to-end", action="store_true", help=end)
    show = verb("show", _show, "draw a system or a bundle", "WHAT")
    where = "measure where a bundle runs here, and say what `auto` would pick"
    show.add_argument("--placements", action="store_true", help=where)
    show.add_argument("--html", metavar="PATH", help="write one self-contained page")
    show.add_argument("--dashboard", metavar="PATH", help="write a bundle's Grafana dashboard")
    show.add_argument("--alerts", metavar="PATH", help="write a bundle's Prometheus alert rules")
    test = verb("test", _test, "verify a bundle and measure its probes again", "BUNDLE")
    test.add_argument("--data", metavar="FILE", help="Parquet rows with targets; default: its own")
    verb("promote", _promote, "point an alias at a bundle whose bounds hold", "BUNDLE", "ALIAS")
    canary = verb("canary", _canary, "let a bundle answer a share of an alias' requests", "ALIAS")
    canary.add_argument("bundle", metavar="BUNDLE", nargs="?", help="its bounds must hold")
    canary.add_argument("--share", type=float, help="of the requests, such as 0.05")
    canary.add_argument("--end", action="store_true", help="the alias' bundle answers all again")
    shadow = verb("shadow", _shadow, "ask a bundle what an alias is asked, unheard", "ALIAS")
    shadow.add_argument("bundle", metavar="BUNDLE", nargs="?", help="its bounds need not hold")
    shadow.add_argument("--end", action="store_true", help="ask it no longer")
    about = "end an alias' canary; without one, point it at the bundle before"
    verb("rollback", _rollback, about, "ALIAS")
    verb("history", _history, "tell what an alias means and all that was done to it", "ALIAS")
    sign = verb("sign", _sign, "vouch for a bundle, stored or at a path", "BUNDLE")
    sign.add_argument("--key", metavar="FILE", required=True, help="a private key in PEM, EC")
    verb("pack", _pack, "pack a bundle into one file, for a device", "BUNDLE", "FILE")
    serve = verb("serve", _serve, "serve what aliases point at, or bundles' paths")
    serve.add_argument("aliases", metavar="ALIAS", nargs="+")
    serve.add_argument("--port", type=int, help="instead of the site's; 0 takes a free one")
    about = "watch a served alias or a stream: rates, latencies, drift, lag"
    watch = verb("watch", _watch, about, "ALIAS")
    watch.add_argument("--url", help="the server's address; default: the site's host and port")
    watch.add_argument("--once", action="store_true", help="one look instead of a live view")
    watch.add_argument("--port", type=int, help="also offer the drift to Prometheus on this port")
    return parser


def _fail(options: argparse.Namespace, error: Exception) -> None:
    if options.json:
        print(json.dumps({"error": str(error), "type": type(error).__name__}), file=sys.stderr)
    else:
        print(f"drivetrain: {error}", file=sys.stderr)


def _declared(options: argparse.Namespace, file: str) -> tuple["System | Stream", Site]:
    site = _site(options, of_system=True)
    return with_settings(declared(Path(file)), site, options.set)


def _read(options: argparse.Namespace, file: str) -> tuple["System", Site]:
    found, site = _declared(options, file)
    return only_system(found, file), site


def _site(options: argparse.Namespace, of_system: bool = False) -> Site:
    site = Site.load(options.on) if options.on else Site()
    return site if of_system else with_settings(None, site, options.set)[1]


def _registry(site: Site) -> "Registry":
    from drivetrain.serving import registry_of

    return registry_of(site)


def _print(options: argparse.Namespace, data: Any, text: str) -> None:
    print(_json(data) if options.json else text)


def _json(data: Any) -> str:
    """One line of JSON, which has no word for a figure that is not a number but ``null``."""

    def known(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: known(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [known(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(data), ensure_ascii=False)


# -- verbs -----------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> int:
    from drivetrain.events.known import known_schema
    from drivetrain.events.windows import kept

    system, site = _declared(options, options.file)
    if not isinstance(system, System):
        from drivetrain.streaming import check, said

        found = check(system)
        _print(options, found, said(found))
        return 0
    schema = known_schema(system.events, Path(site.work, "schemas"))
    system.check(schema)
    kept(system.events, system.columns)
    found = {
        "system": system.name,
        "columns": len(schema),
        "features": len(system.features),
        "targets": list(system.targets),
    }
    _print(
        options,
        found,
        f"{system.name}: {len(system.features)} features of {len(system.columns)} columns, "
        f"target {', '.join(system.targets)}: the declaration fits its events.",
    )
    return 0


def _run(options: argparse.Namespace) -> int:
    from drivetrain.running import check_resources

    system, site = _declared(options, options.file)
    if not isinstance(system, System):
        return _follow(options, system, site)
    if options.from_start or options.to_end:
        raise wrong("run --from-start and --to-end", f"the system {system.name!r}", "a stream")
    inline = site.launcher.kind == "inline" and not options.dry_run
    check_resources(system, site, inline=inline)
    if not inline:
        return _launch(options, system, site)
    return _run_here(options, system, site, World.of())


def _follow(options: argparse.Namespace, stream: "Stream", site: Site) -> int:
    from drivetrain.streaming import How, run

    if options.until or options.dry_run:
        raise wrong("run --until and --dry-run", f"the stream {stream.name!r}", "a system")
    how = How(from_start=options.from_start, to_end=options.to_end)
    with listening(stream, site, as_json=options.json) as emit:
        run(stream, site, how, emit)
    return 0


def _run_here(
    options: argparse.Namespace,
    system: "System",
    site: Site,
    world: World = World(),
    meter: "Meter | None" = None,
) -> int:
    from drivetrain.pipeline import run

    if not world.leads:  # the leader speaks for all
        run(system, site, until=options.until, world=world)
        return 0
    with listening(system, site, as_json=options.json) as emit:
        bundle = run(system, site, until=options.until, emit=emit, world=world, meter=meter)
    if bundle is None:
        return 0
    registry = _registry(site)
    broken = registry.broken_bounds(bundle)
    spent = {n: v for n, v in _measured(registry, bundle).items() if n.startswith("run/")}
    _print(
        options,
        {"bundle": bundle.digest, "metrics": dict(bundle.manifest.metrics), "measured": spent},
        f"\nbundle {bundle.digest}\n"
        + "".join(f"  {m.name:32} {m.value:.5g}\n" for m in _tested(bundle))
        + "".join(f"  {name:32} {value:.3g}\n" for name, value in spent.items())
        + f"next: drivetrain promote {bundle.digest[:12]} {system.name}",
    )
    for bound in broken:
        print(f"drivetrain: a bound is broken: {bound}", file=sys.stderr)
    return 1 if broken else 0


def _launch(options: argparse.Namespace, system: "System", site: Site) -> int:
    """Run in a child process; of several, the training only: the rest is one process's work."""
    from drivetrain.launch.local import Local
    from drivetrain.pipeline import run
    from drivetrain.running import job_of, meet, meter_of

    flags = [f"--on={options.on}"] if options.on else []
    flags += ["--json"] if options.json else []
    flags += [f"--set={item}" for item in options.set]
    if site.launcher.kind == "agents":
        return meet(system, site, options.file, options.until, flags, dry_run=options.dry_run)
    several = site.resources.processes > 1
    if several and options.until in ("events", "features") and not options.dry_run:
        return _run_here(options, system, site)
    job = job_of(system, site, options.file, options.until, flags)

    def sizes() -> int:
        return _read(options, options.file)[1].resources.processes

    launcher = Local(restarts=site.launcher.restarts, sizes=sizes if several else None)
    if options.dry_run:
        print(launcher.render(job), end="")
        return 0
    if not several:
        return launcher.start(job)
    meter = meter_of(site, site.resources.processes)
    with listening(system, site, as_json=options.json) as emit:
        run(system, site, until="features", emit=emit, meter=meter)
    with meter.stage("train"):
        status = launcher.start(job)
    return status or _run_here(options, system, site, meter=meter)


def _show(options: argparse.Namespace) -> int:
    from drivetrain.watch.show import html, plain, text
    from drivetrain.watching import pages_of

    bundle: Bundle | None = None
    if Path(options.what).suffix == ".py":
        system, _ = _read(options, options.what)
        drawn = plain(system.describe(), schema=system.events.schema)
    else:
        bundle = _open(options.what, _site(options))
        drawn = plain(bundle.manifest.system, manifest=bundle.manifest, digest=bundle.digest)
        drawn["measured"] = _measured(_registry(_site(options)), bundle)
    pages = {options.html: html(drawn)} if options.html else {}
    pages |= pages_of(_site(options), options.what, bundle, options.dashboard, options.alerts)
    for path, page in pages.items():
        Path(path).write_text(page, encoding="utf-8")
    shown = "\n".join(f"wrote {path}" for path in pages) or text(drawn)
    if bundle is not None and not pages and not Path(options.what).exists():
        registry = _registry(_site(options))
        traffic = None if registry.is_digest(options.what) else registry.traffic(options.what)
        if traffic is not None and (traffic.canary or traffic.shadow):
            shown += f"\n\n{options.what}: {traffic}"
    if options.placements:
        from drivetrain.core.placement import choose

        if bundle is None:
            raise wrong("show --placements", options.what, "a bundle or an alias")
        choice = choose(bundle, _site(options).serve.parity)
        drawn, shown = {**drawn, "placement": choice.to_json()}, f"{shown}\n\n{choice}"
    _print(options, drawn, shown)
    return 0


def _test(options: argparse.Namespace) -> int:
    from drivetrain.watch import probes as watched
    from drivetrain.watching import rows_to_test

    site = _site(options)
    bundle = _open(options.bundle, site)
    probes = watched.declared(bundle.manifest.system.get("probes", ()))
    found = watched.evaluate(
        bundle, probes, rows_to_test(site, bundle, options.data), prefix="test/"
    )
    known = bundle.manifest.metrics
    for metric in found:
        if options.json:
            print(_json({**vars(metric), "holds": metric.holds}))
            continue
        same = metric.repeatable and known.get(metric.name) == metric.value
        mark = "" if metric.holds else "  BROKEN"
        print(f"{metric}{'  as registered' if same else ''}{mark}")
    return 0 if all(metric.holds for metric in found) else 1


def _promote(options: argparse.Namespace) -> int:
    bundle = _registry(_site(options)).promote(options.bundle, options.alias)
    _print(
        options,
        {"alias": options.alias, "bundle": bundle.digest},
        f"{options.alias} is {bundle.digest}\nnext: drivetrain serve {options.alias}",
    )
    return 0


def _canary(options: argparse.Namespace) -> int:
    registry = _registry(_site(options))
    if _ends(options, "canary"):
        registry.end_canary(options.alias)
    elif options.share is None:
        raise wrong("canary --share", None, "a share of the requests, such as 0.05")
    else:
        registry.canary(options.alias, options.bundle, options.share)
    return _tell(options, registry)


def _shadow(options: argparse.Namespace) -> int:
    registry = _registry(_site(options))
    if _ends(options, "shadow"):
        registry.end_shadow(options.alias)
    else:
        registry.shadow(options.alias, options.bundle)
    return _tell(options, registry)


def _ends(options: argparse.Namespace, verb: str) -> bool:
    if options.end == (options.bundle is not None):
        found = f"{options.bundle or 'no bundle'}{' and --end' if options.end else ''}"
        raise wrong(verb, found, "a bundle, or --end")
    return options.end


def _rollback(options: argparse.Namespace) -> int:
    registry = _registry(_site(options))
    bundle = registry.rollback(options.alias)
    last = registry.history(options.alias)[-1]
    ended = f"the canary {last.bundle[:12]} is ended: " if last.did == "canary ended" else ""
    _print(
        options,
        {"alias": options.alias, "bundle": bundle.digest},
        f"{ended}{options.alias} is {bundle.digest} again",
    )
    return 0


def _history(options: argparse.Namespace) -> int:
    registry = _registry(_site(options))
    if options.json:
        for change in registry.history(options.alias):
            print(_json(vars(change)))
        return 0
    for change in registry.history(options.alias):
        print(change)
    return _tell(options, registry)


def _tell(options: argparse.Namespace, registry: "Registry") -> int:
    """Print what an alias means now."""
    traffic = registry.traffic(options.alias)
    found = {"alias": options.alias, "bundle": traffic.bundle, "canary": traffic.canary}
    found |= {"share": traffic.share, "shadow": traffic.shadow}
    _print(options, found, f"{options.alias}: {traffic}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    import logging

    site = _site(options)
    if site.serve.workers != 1:  # a process for each core: threads of numpy's would be in their way
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from drivetrain.serving import serving

    # New versions and replaced workers are told with their time, not errors alone.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with serving(site, options.aliases, options.port) as server:

        def started() -> None:
            managed = f", managed at {server.management_url}" if server.management_url else ""
            print(f"serving {', '.join(server.names)} at {server.url}{managed}", flush=True)

        return server.run(started)


def _sign(options: argparse.Namespace) -> int:
    from drivetrain.serving import sign_bundle

    bundle, file = sign_bundle(_site(options), options.bundle, options.key)
    found = {"bundle": bundle.digest, "signature": str(file)}
    _print(options, found, f"{bundle.digest} is signed: {file}")
    return 0


def _pack(options: argparse.Namespace) -> int:
    from drivetrain.serving import pack_bundle

    packed = pack_bundle(_site(options), options.bundle, options.file)
    _print(options, {"bundle": packed.digest, "file": options.file}, f"packed: {options.file}")
    return 0


def _watch(options: argparse.Namespace) -> int:
    from drivetrain.watching import watch_of

    watch = watch_of(_site(options), options.alias, options.url)
    return watch.run(once=options.once, json=options.json, port=options.port)


# -- what the verbs share --------------------------------------------------------------------------


def _open(reference: str, site: Site) -> "Bundle":
    from drivetrain.serving import open_bundle

    return open_bundle(site, reference)


def _tested(bundle: "Bundle") -> Iterator[Metric]:
    for name, value in bundle.manifest.metrics.items():
        if name.startswith("test/"):
            yield Metric(name=name, value=value)


def _measured(registry: "Registry", bundle: "Bundle") -> dict[str, float]:
    """What was last measured of a bundle that is not the same in every run."""
    return {metric.name: metric.value for metric in registry.measurements(bundle.digest)}


if __name__ == "__main__":
    sys.exit(main())
