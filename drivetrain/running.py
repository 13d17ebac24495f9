"""Where a run happens: what its site can give and count, and the job that a launcher starts."""

from collections.abc import Sequence
from dataclasses import fields

from drivetrain.core.errors import wrong
from drivetrain.core.job import Job, Resources
from drivetrain.core.site import Site
from drivetrain.core.system import System
from drivetrain.launch.device import resolve
from drivetrain.launch.local import this_command
from drivetrain.watch.energy import Meter, gpus

LAUNCHERS = ("inline", "local")


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
    nobody |= {"gpus": "0; device= names the one to use", "memory": "'' with a local launcher"}
    if getattr(system.train, "distributed", False):
        nobody["processes"] = "1 with the launcher 'inline'"
        if not inline:
            del nobody["processes"]
    if inline:
        nobody["cpus"] = "0 with the launcher 'inline'"
    for field in fields(Resources):
        found = getattr(site.resources, field.name)
        if field.name in nobody and found != field.default:
            raise wrong(f"[resources] {field.name}", found, nobody[field.name])


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
    # What a child is given it need not ask for.
    given = ("launcher.kind=inline", "resources.cpus=0", "resources.processes=1")
    command = this_command(
        "run",
        file,
        *flags,
        *([f"--until={last}"] if last else []),
        *(f"--set={item}" for item in given),
    )
    return Job(name=system.name, command=command, resources=site.resources)


def meter_of(site: Site, processes: int = 1) -> Meter:
    """What counts the energy of a run at a site.

    Args:
        site: knows its grid.
        processes: that train together, each on a GPU of its own where there are any.

    Raises:
        ValueError: a figure under ``[energy]`` is wrong, or the device is not on this machine.
    """
    return Meter.of(site.energy, gpus(resolve(site.device), processes))
