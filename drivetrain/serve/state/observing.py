"""The route by which observations come: ``/observe/{alias}``."""

import asyncio
from typing import Any

import msgspec

from drivetrain.serve.execution.filling import AwayError
from drivetrain.serve.protocols.calls import Series, Service
from drivetrain.serve.state.kept import Outcome, State
from drivetrain.serve.transport.exchange import RETRY, Exchange


class Observing:
    """``POST /observe/{alias}`` with ``{"rows": [{column: value, …}, …]}`` or one row by itself.

    A row has whatever it has of the columns that are observed, at least all of one track. Beside
    ``rows`` may stand ``source`` and ``offset``: a post whose offset is not beyond the last one
    of its source is answered and ignored. It answers ``{"observed": …, "late": …, "missing": …,
    "ignored": …, "durable": …}`` once the observations are safe. ``GET`` tells the offset of each
    source, and what there is.

    Args:
        state: what keeps them.
        service: counts the requests.
    """

    name = "observe"

    def __init__(self, state: State, service: Service) -> None:
        self._state = state
        self._series = Series(service, state.name, "", self.name)
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, exchange: Exchange) -> None:
        """Take observations, or say what is wrong with them."""
        assert self._state.reader is not None, "whoever installs it has told it what is kept"
        try:
            post = self._state.reader.read(exchange.body)
        except ValueError as error:
            self._series.refuse(exchange, 400, str(error))
            return
        self._state.observe(post, lambda outcome: self._told(exchange, outcome))

    def _told(self, exchange: Exchange, outcome: Outcome | Exception) -> None:
        if isinstance(outcome, AwayError):
            self._series.refuse(exchange, 503, str(outcome), RETRY)
        elif isinstance(outcome, Exception):
            self._series.refuse(exchange, 500, "the server failed on this; its log says why.")
        else:
            self._series.answer(exchange, 200, _body(outcome))

    def tell(self, exchange: Exchange) -> None:
        """Say what there is."""
        task = asyncio.get_running_loop().create_task(self._tell(exchange))
        self._tasks.add(task)  # the loop itself keeps no more than a weak reference
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, exchange: Exchange) -> None:
        try:
            found: dict[str, Any] = await self._state.tell()
        except AwayError as error:
            self._series.refuse(exchange, 503, str(error), RETRY)
        else:
            self._series.answer(exchange, 200, msgspec.json.encode(found))


def _body(outcome: Outcome) -> bytes:
    durable = "" if outcome.durable is None else f',"durable":{str(outcome.durable).lower()}'
    return (
        f'{{"observed":{outcome.observed},"late":{outcome.late},"missing":{outcome.missing},'
        f'"ignored":{outcome.ignored}{durable}}}'
    ).encode()
