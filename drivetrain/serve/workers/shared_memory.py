"""System shared memory: regions that a client registers, and tensors that lie in them.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/
extension_shared_memory.md. A region is read and written by pread and pwrite, not mapped: a client
may cut its memory short at any time, which ends a process that has mapped it by SIGBUS, and is a
short read here. What is read is a copy in either case, for a client may write to it meanwhile.
"""

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from drivetrain.core.errors import unknown, wrong
from drivetrain.serve.execution.columns import UnfitError
from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.workers.ledger import Failures, Follower, Ledger, State

_DIRECTORY = "/dev/shm"
"""Where POSIX shared memory lies on Linux (shm_overview(7))."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY = re.compile(r"/?(?!\.{1,2}$)[A-Za-z0-9._-]{1,250}")
_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class SharedMemoryLimits:
    """What clients may take of shared memory.

    Attributes:
        regions: registered at once.
        bytes: of all regions together. Of a region that is not in use nothing is held but a file
            descriptor; the memory itself is the client's.
    """

    regions: int = 128
    bytes: int = 16 << 30


@dataclass(frozen=True)
class Region:
    """A part of a POSIX shared memory object.

    Attributes:
        name: what requests call it.
        key: the object's name, as shm_open(3) takes it.
        offset: where the region begins in the object, in bytes.
        byte_size: its length.
    """

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a region.

    Attributes:
        region: the region's name.
        offset: where it begins in the region, in bytes.
        byte_size: its length, or of an output the most that it may take.
    """

    region: str
    offset: int
    byte_size: int

    @classmethod
    def of(cls, where: str, parameters: Mapping[str, Any]) -> "Place | None":
        """What the parameters of a tensor say, None if nothing.

        Args:
            where: the tensor, for errors.
            parameters: those of the tensor in a request.

        Raises:
            ValueError: the region's name or a number is missing or none.
        """
        region = parameters.get("shared_memory_region")
        if region is None:
            for name in ("shared_memory_byte_size", "shared_memory_offset"):
                if name in parameters:
                    raise ValueError(f"{where}, {name}: found without shared_memory_region.")
            return None
        if type(region) is not str:
            raise wrong(f"{where}, shared_memory_region", region, "the name of a region")
        size = parameters.get("shared_memory_byte_size")
        offset = parameters.get("shared_memory_offset", 0)
        return cls(
            region,
            _bytes(f"{where}, shared_memory_offset", offset),
            _bytes(f"{where}, shared_memory_byte_size", size),
        )


def _bytes(where: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise wrong(where, value, "a number of bytes")
    return value


@dataclass(frozen=True)
class _Open:
    """A region that this process can reach.

    Attributes:
        identity: of the object's file, its device and inode.
        writable: whether outputs may go there.
    """

    region: Region
    fd: int
    identity: tuple[int, int]
    writable: bool


def agreement(seats: int) -> Ledger:
    """What processes agree on: the regions that are registered."""
    return Ledger(seats, {"regions": {}})


class SharedMemory:
    """The regions that clients have registered, over all processes of a server.

    A process that takes the place of another opens every region anew. Of one whose object its
    client has unlinked by then it has nothing to open, and refuses requests that name it.

    Args:
        ledger: what all processes agree on.
        seat: this process' place in it.
        limits: what clients may take.
    """

    def __init__(
        self, ledger: Ledger, seat: int = 0, limits: SharedMemoryLimits | None = None
    ) -> None:
        self._limits = limits or SharedMemoryLimits()
        self._open: dict[str, _Open] = {}
        self._failed: dict[str, str] = {}
        self._ledger = ledger
        self._follower = Follower(ledger, seat, self._apply)

    async def begin(self) -> None:
        """Follow what the processes agree on."""
        await self._follower.begin()

    def end(self) -> None:
        """Let go of every region."""
        self._follower.end()
        for name in list(self._open):
            self._close(name)

    # -- what clients manage -------------------------------------------------------------------

    def status(self, name: str = "") -> list[Region]:
        """Every region, or the one of this name.

        Raises:
            ValueError: no such region.
        """
        regions = self._regions(self._ledger.read()[1])
        if not name:
            return list(regions.values())
        return [_known(name, regions)]

    async def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open a region in every process.

        Raises:
            ValueError: the name or the key is not allowed, the name is taken, there are too many
                regions, or there is no such object that belongs to the server's user and is as
                long as that.
            RefusedError: 500, some process could not open it, which is told; 503, some did not in
                time.
        """
        region = _checked(Region(name, key, offset, byte_size))
        found = _opened(region)
        try:
            entry = [key, offset, byte_size, *found.identity]
        finally:
            os.close(found.fd)

        def more(state: State) -> State:
            regions = state["regions"]
            if name in regions:
                raise wrong("region", name, "a name that is not registered yet")
            if len(regions) >= self._limits.regions:
                raise wrong("regions", len(regions) + 1, f"{self._limits.regions} at once")
            total = byte_size + sum(other[2] for other in regions.values())
            if total > self._limits.bytes:
                raise wrong("bytes of all regions", total, f"{self._limits.bytes}")
            return {"regions": {**regions, name: entry}}

        failures = await self._follower.change(more, _SECONDS)
        failed = {seat: texts[name] for seat, texts in failures.items() if name in texts}
        if failed:
            await self._without(name)
            text = "; ".join(f"worker {seat}: {text}" for seat, text in failed.items())
            raise RefusedError(500, f"region {name!r} could not be opened: {text}")

    async def unregister(self, name: str = "") -> None:
        """Close a region, or all of them, in every process; one that is unknown is none's loss.

        Raises:
            RefusedError: 503, some process did not do it in time.
        """
        await self._without(name)

    async def _without(self, name: str) -> None:
        def less(state: State) -> State:
            kept = {key: v for key, v in state["regions"].items() if name and key != name}
            return {"regions": kept}

        await self._follower.change(less, _SECONDS)

    # -- what requests use ---------------------------------------------------------------------

    def read(self, where: str, place: Place) -> bytes:
        """A copy of the bytes of an input.

        Args:
            where: the tensor, for errors.
            place: where it lies.

        Raises:
            ValueError: no such region, or it does not reach so far.
        """
        found = self.check(where, place)
        start = found.region.offset + place.offset
        data = os.pread(found.fd, place.byte_size, start)
        while len(data) < place.byte_size:  # Linux reads 2 GiB at most at once
            more = os.pread(found.fd, place.byte_size - len(data), start + len(data))
            if not more:
                raise wrong(
                    f"{where}, region {place.region!r}",
                    f"an object that ends at byte {start + len(data)}",
                    f"one of {start + place.byte_size} bytes or more",
                )
            data += more
        return data

    def write(self, where: str, place: Place, data: bytes) -> None:
        """Put an output in its place.

        Raises:
            UnfitError: no such region any more, it does not reach so far, or it is full.
        """
        try:
            found = self.check(where, place, writes=True)
            if len(data) > place.byte_size:
                raise wrong(
                    f"{where}, shared_memory_byte_size", place.byte_size, f"{len(data)} or more"
                )
            start, end = found.region.offset + place.offset, os.fstat(found.fd).st_size
            if start + len(data) > end:  # writing would make the object longer
                raise wrong(
                    f"{where}, region {place.region!r}",
                    f"an object that ends at byte {end}",
                    f"one of {start + len(data)} bytes or more",
                )
            written = 0
            while written < len(data):
                written += os.pwrite(found.fd, memoryview(data)[written:], start + written)
        except (ValueError, OSError) as error:
            raise UnfitError(str(error)) from None

    def check(self, where: str, place: Place, writes: bool = False) -> _Open:
        """The region of a tensor, which reaches far enough.

        Raises:
            ValueError: no such region, it does not reach so far, or it cannot be written to.
        """
        found = self._open.get(place.region)
        if found is None:
            if place.region in self._failed:
                raise ValueError(f"{where}: {self._failed[place.region]}")
            raise unknown("region", place.region, self._open, where)
        if place.offset + place.byte_size > found.region.byte_size:
            raise wrong(
                f"{where}, region {place.region!r}",
                f"bytes {place.offset} to {place.offset + place.byte_size}",
                f"0 to {found.region.byte_size}",
            )
        if writes and not found.writable:
            raise ValueError(f"{where}, region {place.region!r}: the server may only read it.")
        return found

    # -- what this process holds ---------------------------------------------------------------

    async def _apply(self, state: State) -> Failures:
        wanted = self._regions(state)
        for name, found in list(self._open.items()):
            if wanted.get(name) != found.region or _identity(state, name) != found.identity:
                self._close(name)
        self._failed = {}
        for name, region in wanted.items():
            if name in self._open:
                continue
            try:
                found = _opened(region)
                if found.identity != _identity(state, name):
                    os.close(found.fd)
                    raise wrong(f"region {name!r}, key", region.key, "the object of its register")
                self._open[name] = found
            except (ValueError, OSError) as error:
                self._failed[name] = str(error)
        return self._failed

    def _close(self, name: str) -> None:
        with suppress(OSError):
            os.close(self._open.pop(name).fd)

    @staticmethod
    def _regions(state: State) -> dict[str, Region]:
        return {name: Region(name, *entry[:3]) for name, entry in state["regions"].items()}


def _identity(state: State, name: str) -> tuple[int, int]:
    device, inode = state["regions"][name][3:]
    return device, inode


def _known(name: str, regions: Mapping[str, Region]) -> Region:
    if name not in regions:
        raise unknown("region", name, regions)
    return regions[name]


def _checked(region: Region) -> Region:
    if not _NAME.fullmatch(region.name):
        raise wrong(
            "region name",
            region.name,
            "1 to 128 letters, digits, '.', '_' and '-', a letter or digit first",
        )
    where = f"region {region.name!r}"
    if type(region.key) is not str or not _KEY.fullmatch(region.key):
        raise wrong(f"{where}, key", region.key, "'/' and a name without another '/'")
    _bytes(f"{where}, offset", region.offset)
    if _bytes(f"{where}, byte_size", region.byte_size) < 1:
        raise wrong(f"{where}, byte_size", region.byte_size, "1 or more")
    return region


def _opened(region: Region) -> _Open:
    """Open the object of a region and check whose and how long it is.

    Raises:
        ValueError: there is none, it is no such file, another user's, or too short.
    """
    where = f"region {region.name!r}, key {region.key!r}"
    path = os.path.join(_DIRECTORY, region.key.removeprefix("/"))
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    writable = True
    try:
        try:
            fd = os.open(path, os.O_RDWR | flags)
        except PermissionError:
            fd, writable = os.open(path, os.O_RDONLY | flags), False
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}.") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{where}: found no shared memory object.")
        if status.st_uid != os.geteuid():
            raise wrong(f"{where}, owner", status.st_uid, f"{os.geteuid()}, the server's user")
        end = region.offset + region.byte_size
        if end > status.st_size:
            raise wrong(f"{where}, offset + byte_size", end, f"at most its {status.st_size} bytes")
    except ValueError:
        os.close(fd)
        raise
    return _Open(region, fd, (status.st_dev, status.st_ino), writable)
