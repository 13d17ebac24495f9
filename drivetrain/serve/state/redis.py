"""The keys of an alias in Redis: read together, and written together if nobody else wrote them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drivetrain.core.batch import Array
from drivetrain.core.need import need
from drivetrain.serve.execution.filling import AwayError, Kept

_SECONDS = 2.0
"""That Redis may take for an answer."""
VERSION = 8
"""Bytes before a key's state, which change with each write."""
_SHIFT = 1 << 63
"""Makes a time a number from 0 on, whose decimal digits are in the order of the times."""

# KEYS: positions of sources, watermarks of tracks, then the keys that are written.
# ARGV: how many sources, and of each its name, what it should be and what it is to be; how many
# watermarks, and of each its track and what it is to be at least; then of each key the version
# that it should have, what it is to be, and for how many milliseconds (0: for ever).
_SCRIPT = """
local at, sources = 2, tonumber(ARGV[1])
for i = 1, sources do
  if (redis.call('HGET', KEYS[1], ARGV[at]) or '') ~= ARGV[at + 1] then return 0 end
  at = at + 3
end
local watermarks = tonumber(ARGV[at])
local marks = at + 1
local first = marks + 2 * watermarks
at = first
for i = 3, #KEYS do
  if redis.call('GETRANGE', KEYS[i], 0, 7) ~= ARGV[at] then return 0 end
  at = at + 3
end
for i = 0, sources - 1 do
  redis.call('HSET', KEYS[1], ARGV[2 + 3 * i], ARGV[4 + 3 * i])
end
for i = 0, watermarks - 1 do
  local track, mark = ARGV[marks + 2 * i], ARGV[marks + 2 * i + 1]
  if mark > (redis.call('HGET', KEYS[2], track) or '') then
    redis.call('HSET', KEYS[2], track, mark)
  end
end
at = first
for i = 3, #KEYS do
  if ARGV[at + 2] == '0' then
    redis.call('SET', KEYS[i], ARGV[at + 1])
  else
    redis.call('SET', KEYS[i], ARGV[at + 1], 'PX', ARGV[at + 2])
  end
  at = at + 3
end
return 1
"""


class Place:
    """One alias' keys in one Redis. All of them lie in one slot of a cluster.

    Args:
        url: of the server.
        name: of the alias.
    """

    def __init__(self, url: str, name: str) -> None:
        redis = need("redis.asyncio", "redis")
        # A write that is tried again by itself might be one that was taken: it would count twice.
        once = need("redis.asyncio.retry", "redis").Retry(
            need("redis.backoff", "redis").NoBackoff(), 0
        )
        self._error: type[Exception] = need("redis.exceptions", "redis").RedisError
        self._client = redis.Redis.from_url(
            url, retry=once, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS
        )
        self._prefix = f"drivetrain:{{{name}}}:"
        self._write = self._client.register_script(_SCRIPT)

    def keys(self, kept: Kept, hashes: Array) -> list[str]:
        """Where the states of keys of a track lie."""
        prefix = f"{self._prefix}{kept.digest}:"
        return [f"{prefix}{high:016x}{low:016x}" for high, low in hashes.tolist()]

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """What lies at some keys.

        Raises:
            AwayError: Redis does not answer, or refuses.
        """
        return await self._asked(lambda: self._client.mget(keys)) if keys else []

    async def heads(self) -> tuple[dict[str, int], dict[str, int]]:
        """The position of each source, and the watermark of each track by its digest.

        Raises:
            AwayError: Redis does not answer, or refuses.
        """
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(f"{self._prefix}positions")
        pipe.hgetall(f"{self._prefix}watermarks")
        positions, watermarks = await self._asked(pipe.execute)
        return (
            {source.decode(): int(at) for source, at in positions.items()},
            {track.decode(): int(mark) - _SHIFT for track, mark in watermarks.items()},
        )

    async def write(
        self,
        sources: Mapping[str, tuple[int | None, int]],
        watermarks: Mapping[str, int],
        keys: Mapping[str, tuple[bytes, bytes, int]],
    ) -> bool:
        """Write all, if everything is as it was when it was read; whether it was.

        Args:
            sources: of each what its position was, and what it is to be.
            watermarks: of each track, by its digest, at least.
            keys: of each the version that it had, its new state and for how many milliseconds.

        Raises:
            AwayError: Redis does not answer, or refuses.
        """
        arguments: list[Any] = [len(sources)]
        for source, (before, after) in sources.items():
            arguments += (source, "" if before is None else before, after)
        arguments.append(len(watermarks))
        for digest, mark in watermarks.items():
            arguments += (digest, f"{mark + _SHIFT:020d}")
        for version, state, milliseconds in keys.values():
            arguments += (version, state, milliseconds)
        heads = (f"{self._prefix}positions", f"{self._prefix}watermarks")
        return bool(await self._asked(lambda: self._write([*heads, *keys], arguments)))

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()

    async def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return await ask()
        except (self._error, OSError) as error:
            text = str(error) or type(error).__name__
            raise AwayError(f"[serve] state: Redis cannot be asked: {text[:200]}.") from None
