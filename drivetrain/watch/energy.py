"""The energy that the stages of a run take: measured where a machine can, estimated elsewhere."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Metric, Note
from drivetrain.core.site import EnergySite
from drivetrain.watch.grid import GRAMS_PER_KWH, SOURCE

JOULES = 3.6e6
"""Joules in a kilowatt-hour."""
POWERCAP = Path("/sys/class/powercap")


class Counter(Protocol):
    """Something that counts joules.

    Attributes:
        measured: by the hardware; else this is an estimate.
        says: how the joules are known, in words for a person.
    """

    measured: bool
    says: str

    def joules(self) -> float:
        """How many there were since some moment that stays the same; never falls."""
        ...


class CpuTime:
    """An estimate from what the run computes: CPU seconds at the power of one busy CPU.

    Counted are the seconds of this process and of those it started that have ended. Idle time,
    memory, disks and cooling are not in it.

    Args:
        watts: of one busy logical CPU.
    """

    measured = False

    def __init__(self, watts: float) -> None:
        self._watts = watts
        self.says = f"CPU seconds at {watts:g} W"

    def joules(self) -> float:
        """CPU seconds so far, at so many watts."""
        spent = os.times()
        own = spent.user + spent.system
        return (own + spent.children_user + spent.children_system) * self._watts


class Rapl:
    """What Intel's and AMD's processors count by themselves: packages, and memory where it counts.

    It is the energy of the whole machine, other work on it included. The counters go round within
    minutes of full load, so they must be read more often than that.

    Source: the Linux kernel's documentation, power/powercap/powercap.

    Args:
        root: where the kernel shows the counters.

    Raises:
        OSError: there are none, or this user may not read them.
    """

    measured = True
    says = "RAPL, for the whole machine"

    def __init__(self, root: Path) -> None:
        self._zones = [
            zone
            for zone in sorted(root.glob("intel-rapl:*"))
            if (zone / "name").read_text().strip().startswith(("package", "dram"))
        ]
        if not self._zones:
            raise FileNotFoundError(f"{root} has no counters")
        self._ranges = [self._number(zone, "max_energy_range_uj") for zone in self._zones]
        self._last = [self._number(zone, "energy_uj") for zone in self._zones]
        self._sum = 0
        self._lock = threading.Lock()

    @staticmethod
    def _number(zone: Path, name: str) -> int:
        return int((zone / name).read_text())

    def joules(self) -> float:
        """Since this object was made."""
        with self._lock:
            for number, zone in enumerate(self._zones):
                now = self._number(zone, "energy_uj")
                went = now - self._last[number]
                self._sum += went if went >= 0 else went + self._ranges[number]
                self._last[number] = now
            return self._sum / 1e6


class Nvml:
    """What NVIDIA's GPUs count by themselves, from Volta on.

    Args:
        devices: the indices or UUIDs of those that the run uses.
        library: ``pynvml``.
    """

    measured = True
    says = "the GPUs' own counters"

    def __init__(self, devices: Sequence[str], library: Any) -> None:
        self._library = library
        library.nvmlInit()
        self._handles = [
            library.nvmlDeviceGetHandleByIndex(int(device))
            if device.isdigit()
            else library.nvmlDeviceGetHandleByUUID(device)
            for device in devices
        ]
        self.joules()  # a GPU that does not count says so now

    def joules(self) -> float:
        """Since the driver was loaded."""
        read = self._library.nvmlDeviceGetTotalEnergyConsumption
        return sum(read(handle) for handle in self._handles) / 1e3


def gpus(device: str, count: int = 1, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs behind a torch device, as NVML names them, which knows no CUDA_VISIBLE_DEVICES.

    Args:
        device: as torch names it.
        count: processes, each of which has a GPU of its own.
        environment: of this process.
    """
    if not device.startswith("cuda"):
        return []
    first = int(device.partition(":")[2] or 0)
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",")] if visible else None
    wanted = range(first, first + count)
    return [names[i] if names else str(i) for i in wanted if names is None or i < len(names)]


def counters(
    watts: float, devices: Sequence[str] = (), root: Path = POWERCAP
) -> tuple[Counter, ...]:
    """The best that this machine has: RAPL, or an estimate by CPU time, and the GPUs' own.

    Args:
        watts: of one busy logical CPU, where that must be estimated.
        devices: GPUs that the run uses, see :func:`gpus`; left out without ``pynvml``.
        root: where the kernel shows RAPL.
    """
    found: list[Counter] = []
    try:
        found.append(Rapl(root))
    except OSError:
        found.append(CpuTime(watts))
    if devices:
        try:
            import pynvml  # pyright: ignore[reportMissingImports]
        except ImportError:
            return (*found, _Unknown())
        try:
            found.append(Nvml(devices, pynvml))
        except pynvml.NVMLError as error:
            return (*found, _Unknown(str(error)))
    return tuple(found)


class _Unknown:
    """GPUs whose energy nobody can tell: that it is left out must be said."""

    measured = False

    def __init__(self, why: str = "drivetrain[energy] would count them") -> None:
        self.says = f"GPUs left out ({why})"

    def joules(self) -> float:
        """Nothing is known."""
        return 0.0


class Meter:
    """Reads counters where a stage begins and where it ends, and every minute between.

    Args:
        counters: of joules.
        grams_per_kwh: of CO2 equivalent; None if nobody knows.
        grid: where that comes from.
        seconds: between two readings within a stage, so that no counter goes round unseen.
    """

    def __init__(
        self,
        counters: Sequence[Counter],
        *,
        grams_per_kwh: float | None = None,
        grid: str = "",
        seconds: float = 60.0,
    ) -> None:
        self._counters = tuple(counters)
        self._grams = grams_per_kwh
        self._grid = grid
        self._seconds = seconds
        self.joules: dict[str, float] = {}
        """What each stage took."""

    @classmethod
    def of(cls, site: EnergySite, devices: Sequence[str] = ()) -> "Meter":
        """What a site asks for.

        Raises:
            ValueError: it names a country that the table does not have, or figures below 0.
        """
        for name in ("grams_per_kwh", "watts_per_cpu"):
            if not getattr(site, name) >= 0:
                raise wrong(f"[energy] {name}", getattr(site, name), "0 or more")
        grams, grid = site.grams_per_kwh or None, "the site's"
        if grams is None and site.country:
            if site.country not in GRAMS_PER_KWH:
                raise unknown("country", site.country, GRAMS_PER_KWH, "[energy] country")
            grams, grid = GRAMS_PER_KWH[site.country], f"{site.country}, {SOURCE}"
        return cls(counters(site.watts_per_cpu, devices), grams_per_kwh=grams, grid=grid)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens in the block as that stage's; a stage may have several blocks."""
        before = self._read()
        done = threading.Event()
        watch = None
        if any(counter.measured for counter in self._counters):
            watch = threading.Thread(target=self._keep_reading, args=(done,), daemon=True)
            watch.start()
        try:
            yield
        finally:
            done.set()
            if watch is not None:
                watch.join()
            self.joules[name] = self.joules.get(name, 0.0) + self._read() - before

    def _read(self) -> float:
        return sum(counter.joules() for counter in self._counters)

    def _keep_reading(self, done: threading.Event) -> None:
        while not done.wait(self._seconds):
            self._read()

    def figures(self, stage: str | None = None) -> list[Metric]:
        """The energy of a stage, or of all, and the carbon where the grid is known.

        What is estimated is called so. Carbon always is: a grid's mean over a year is not what
        the grid was at that hour.
        """
        joules = sum(self.joules.values()) if stage is None else self.joules[stage]
        kwh = joules / JOULES
        exact = all(counter.measured for counter in self._counters)
        name = "energy_kwh" if exact else "estimated_energy_kwh"
        found = {name: kwh}
        if self._grams is not None:
            found["estimated_carbon_kg"] = kwh * self._grams / 1000
        return [
            Metric(name=f"{stage or 'run'}/{key}", value=value, repeatable=False)
            for key, value in found.items()
        ]

    def note(self) -> Note:
        """How the figures are known."""
        text = "energy by " + " and ".join(counter.says for counter in self._counters)
        if self._grams is not None:
            text += f"; carbon at {self._grams:g} g/kWh ({self._grid})"
        return Note(stage="energy", text=text)
