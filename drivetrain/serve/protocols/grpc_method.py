"""A method of a gRPC service that is answered at once: a message in, a message or an error out."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from drivetrain.serve.execution.models import Release
from drivetrain.serve.protocols.calls import Series
from drivetrain.serve.protocols.management import Management
from drivetrain.serve.protocols.wire import MalformedError
from drivetrain.serve.transport.exchange import Exchange, RefusedError

Answer = Callable[[Exchange], object]
Messages = Callable[[], Mapping[str, Any]]
"""Gives the classes of a service's messages by name; it may find that protobuf is absent."""

PROTOBUF = b"application/grpc+proto"


class Served(Protocol):
    """What a service answers for; :class:`drivetrain.serve.application.Application` is one.

    Attributes:
        releases: the loaded versions of each alias.
        management: answers who manages, or None.
    """

    releases: dict[str, Release]
    management: Management | None

    @property
    def ready(self) -> bool:
        """Whether requests are taken; not any more once the server ends."""
        ...

    @property
    def able(self) -> bool:
        """Whether requests are taken, and every alias that should be loaded is."""
        ...

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """What versions have done, or a ValueError if there are none of these names."""
        ...

    def route(self, kind: str, name: str, version: str = "") -> Answer:
        """Where a call for a version goes, or a ValueError that names the nearest."""
        ...


class Method:
    """Parses a request, asks for its answer, and writes it.

    Args:
        series: counts its calls.
        messages: where the request's class is.
        request: the name of that class.
        answer: takes a request and gives the answer's message.
    """

    def __init__(
        self, series: Series, messages: Messages, request: str, answer: Callable[[Any], Any]
    ) -> None:
        self._series = series
        self._messages = messages
        self._request = request
        self._answer = answer

    def __call__(self, exchange: Exchange) -> None:
        """Answer a call."""
        try:
            request = parsed(self._messages, self._request, bytes(exchange.body))
            body = self._answer(request).SerializeToString()
        except Exception as error:
            refuse(self._series, exchange, error)
        else:
            self._series.answer(exchange, 200, body, PROTOBUF)


def refuse(series: Series, exchange: Exchange, error: Exception, extra: bytes = b"") -> None:
    """Answer what kept a method from answering.

    Raises:
        Exception: ``error`` itself, if nobody is meant to read it.
    """
    if isinstance(error, RefusedError):
        series.refuse(exchange, error.status, str(error), extra)
    elif isinstance(error, ValueError):
        series.refuse(exchange, 400, str(error))
    else:
        raise error


def unimplemented(series: Series, message: str) -> Answer:
    """A method that is there to say why it is not."""
    return lambda exchange: series.refuse(exchange, 501, message)


def parsed(messages: Messages, name: str, data: bytes) -> Any:
    """A message out of its bytes.

    Raises:
        RefusedError: 501, protobuf is not installed.
        MalformedError: it is none.
    """
    try:
        kind = messages()[name]
    except ImportError as error:
        raise RefusedError(501, str(error)) from None
    try:
        return kind.FromString(data)
    except Exception as error:  # protobuf's own DecodeError, which only protobuf can name
        raise MalformedError(f"body: {error}; allowed: a {name}.") from None


def found(ask: Callable[[], Any]) -> Any:
    """What ``ask`` finds.

    Raises:
        RefusedError: 404, it does not exist.
    """
    try:
        return ask()
    except ValueError as error:
        raise RefusedError(404, str(error)) from None
