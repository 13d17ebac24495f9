"""Where a run happens: what its site can give and count, and the job that a launcher starts."""

from collections.abc import Sequence
from dataclasses import fields, replace

from drivetrain.core.describe import digest
from drivetrain.core.errors import wrong
from drivetrain.core.job import Job, Resources
from drivetrain.core.site import Site
from drivetrain.core.system import System
from drivetrain.launch.agents import Agents
from drivetrain.launch.device import resolve
from drivetrain.launch.local import this_command
from drivetrain.watch.energy import Meter, gpus

LAUNCHERS = ("inline", "local", "agents")


def check_resources(system: System, site: Site, *, inline: bool) -> None:
    """Refuse what is asked for and would be given by nobody.

    Args:
        system: its strategy says whether several processes can train it.
        site: its resources are held against that.
        inline: nothing is launched: this very process runs the system.

    Raises:
        ValueError: names the launcher, or the first of the resources.
    """
    if site.launcher.kind not in LAUNCHERS:
        raise wrong("[launcher] kind", site.launcher.kind, ", ".join(LAUNCHERS))
    strategy = type(system.train).__name__
    nobody = {"nodes": f"1 with {strategy}", "processes": f"1 with {strategy}"}
    kind = site.launcher.kind
    nobody |= {"gpus": "0; device= names the one to use"}
    nobody |= {"memory": f"'' with the launcher {kind!r}"}
    if kind == "agents":
        _check_agents(system, site)
        nobody = {name: nobody[name] for name in ("gpus", "memory")}
    elif getattr(system.train, "distributed", False):
        nobody["processes"] = "1 with the launcher 'inline'"
        if not inline:
            del nobody["processes"]
    if inline:
        nobody["cpus"] = "0 with the launcher 'inline'"
    for field in fields(Resources):
        found = getattr(site.resources, field.name)
        if field.name in nobody and found != field.default:
            raise wrong(f"[resources] {field.name}", found, nobody[field.name])


def _check_agents(system: System, site: Site) -> None:
    if not getattr(system.train, "distributed", False):
        strategy = type(system.train).__name__
        allowed = f"inline or local with {strategy}; AllReduce trains on several machines"
        raise wrong("[launcher] kind", "agents", allowed)
    agents_of(site)
    resources = site.resources
    if resources.nodes == 1 and resources.processes > 1:  # one node: one process of one agent
        allowed = "1 where [resources] nodes is 1; 'local' trains in several on one machine"
        raise wrong("[resources] processes", resources.processes, allowed)


def agents_of(site: Site) -> Agents:
    """The launcher of a site whose machines run a job together.

    Raises:
        OSError: its token can't be read.
        ValueError: names what is wrong under ``[launcher]``.
    """
    launcher = site.launcher
    if launcher.at_least > site.resources.nodes:
        allowed = f"at most [resources] nodes, which is {site.resources.nodes}"
        raise wrong("[launcher] at_least", launcher.at_least, allowed)
    return Agents(
        address=launcher.address,
        token=launcher.token(),
        at_least=launcher.at_least,
        restarts=launcher.restarts,
        wait_seconds=launcher.wait_seconds,
    )


def job_of(system: System, site: Site, file: str, until: str | None, flags: Sequence[str]) -> Job:
    """The job that runs a declared system; of several processes, one that trains it.

    Args:
        system: gives the job its name.
        site: says how many processes there are.
        file: declares the system.
        until: the last stage.
        flags: of the command line, to be handed on.
    """
    last = "train" if site.resources.processes > 1 else until
    command = _command(file, last, flags)
    return Job(name=system.name, command=command, resources=site.resources)


def jobs_of(
    system: System, site: Site, file: str, until: str | None, flags: Sequence[str]
) -> list[Job]:
    """The jobs that run a declared system on several machines, one after another.

    One process makes the events and the features, all train, and one does the rest.

    Args:
        system: as for :func:`job_of`, and so are the others.
        site: its nodes are how many machines train at most.
        file: declares the system.
        until: the last stage.
        flags: of the command line, to be handed on.
    """

    def alone(last: str | None) -> Job:
        one = replace(site.resources, nodes=1, processes=1)
        return Job(name=system.name, command=_command(file, last, flags), resources=one)

    if until in ("events", "features"):
        return [alone(until)]
    train = Job(name=system.name, command=_command(file, "train", flags), resources=site.resources)
    return [alone("features"), train, *([] if until == "train" else [alone(until)])]


def meet(
    system: System,
    site: Site,
    file: str,
    until: str | None,
    flags: Sequence[str],
    *,
    dry_run: bool = False,
) -> int:
    """Run a declared system together with the same command on other machines.

    Args:
        system: as for :func:`jobs_of`, and so are the others.
        site: names where they meet.
        file: declares the system.
        until: the last stage.
        flags: of the command line, to be handed on.
        dry_run: print what would run.

    Raises:
        ConnectionError: nobody is met in time.
        ValueError: the others run something else.
    """
    launcher, jobs = agents_of(site), jobs_of(system, site, file, until, flags)
    if dry_run:
        print("".join(map(launcher.render, jobs)), end="")
        return 0
    return launcher.run(jobs, digest(system.digest, until))


def _command(file: str, last: str | None, flags: Sequence[str]) -> tuple[str, ...]:
    # What a child is given it need not ask for.
    resources = ("cpus=0", "nodes=1", "processes=1")
    given = ("launcher.kind=inline", *(f"resources.{item}" for item in resources))
    return this_command(
        "run",
        file,
        *flags,
        *([f"--until={last}"] if last else []),
        *(f"--set={item}" for item in given),
    )


def meter_of(site: Site, processes: int = 1) -> Meter:
    """What counts the energy of a run at a site.

    Args:
        site: knows its grid.
        processes: that train together, each on a GPU of its own where there are any.

    Raises:
        ValueError: a figure under ``[energy]`` is wrong, or the device is not on this machine.
    """
    return Meter.of(site.energy, gpus(resolve(site.device), processes))
