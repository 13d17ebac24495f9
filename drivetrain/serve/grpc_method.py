"""A method of a gRPC service that is answered at once: a message in, a message or an error out."""

from collections.abc import Callable, Mapping
from typing import Any

from drivetrain.serve.calls import Series
from drivetrain.serve.exchange import Exchange, RefusedError
from drivetrain.serve.wire import MalformedError

Messages = Callable[[], Mapping[str, Any]]
"""Gives the classes of a service's messages by name; it may find that protobuf is absent."""

PROTOBUF = b"application/grpc+proto"


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
        except (ValueError, ImportError, RefusedError) as error:
            self._series.refuse(exchange, status_of(error), str(error))
        else:
            self._series.answer(exchange, 200, body, PROTOBUF)


def unimplemented(series: Series, message: str) -> Callable[[Exchange], None]:
    """A method that is there to say why it is not."""
    return lambda exchange: series.refuse(exchange, 501, message)


def parsed(messages: Messages, name: str, data: bytes) -> Any:
    """A message out of its bytes.

    Raises:
        ImportError: protobuf is not installed.
        MalformedError: it is none.
    """
    kind = messages()[name]
    try:
        return kind.FromString(data)
    except Exception as error:  # protobuf's own DecodeError, which only protobuf can name
        raise MalformedError(f"body: {error}; allowed: a {name}.") from None


def status_of(error: Exception) -> int:
    """The status of HTTP for what kept a method from answering."""
    if isinstance(error, RefusedError):
        return error.status
    return 501 if isinstance(error, ImportError) else 400


def found(ask: Callable[[], Any]) -> Any:
    """What ``ask`` finds.

    Raises:
        RefusedError: 404, it does not exist.
    """
    try:
        return ask()
    except ValueError as error:
        raise RefusedError(404, str(error)) from None
