"""ModelStreamInfer of the Open Inference Protocol V2: many inference calls over one stream.

Each message is a call of its own, and its answer or its error is one message too, in the order of
the calls, as Triton gives them for models that answer once. An error ends its call, never the
stream. When the client has sent its last message the stream ends behind the last answer.
"""

import logging
from collections import deque
from collections.abc import Callable

from drivetrain.core.batch import Array
from drivetrain.serve.protocols.calls import Call
from drivetrain.serve.protocols.grpc_infer import PROTOBUF, GrpcInferRoute, id_of
from drivetrain.serve.protocols.wire import chunk
from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.transport.grpc_stream import GrpcStream

log = logging.getLogger("drivetrain.serve")

_ERROR, _ANSWER, _ID = 1, 2, 3


class StreamInferRoute(GrpcInferRoute):
    """One message of ``inference.GRPCInferenceService/ModelStreamInfer``."""

    name = "grpc_stream"
    parameters = chunk(4, chunk(1, b"triton_final_response") + chunk(2, b"\x08\x01"))
    """``triton_final_response`` is true: no further answer to the same call comes."""

    def encode(self, call: Call, outputs: list[Array]) -> tuple[bytes, bytes, bytes]:
        body, kind, extra = super().encode(call, outputs)
        return chunk(_ANSWER, body), kind, extra


class InferStream:
    """The calls of one stream.

    Args:
        stream: where messages come from and answers go to.
        ask: takes each call.
    """

    def __init__(self, stream: GrpcStream, ask: Callable[[Exchange], None]) -> None:
        self._stream = stream
        self._ask = ask
        self._waiting: deque[_Message] = deque()
        self.client = stream.client
        self._ended = False
        # A name for the whole stream would be the name of every call in it.
        self._headers = {k: v for k, v in stream.headers.items() if k != b"x-request-id"}
        stream.on_message = self._begin
        stream.on_end = self._end
        stream.on_gone = self._gone

    def _begin(self, message: bytes) -> None:
        exchange = _Message(self, self._stream.target, self._headers, self._stream.managed)
        exchange.body = message
        exchange.deadline = self._stream.deadline
        self._waiting.append(exchange)
        try:
            self._ask(exchange)
        except Exception:
            log.exception("a message of a stream failed")
            if not exchange.answered:
                exchange.refuse(500, "the server failed on this request; its log says why.")

    def _end(self) -> None:
        self._ended = True
        self.settle()

    def _gone(self) -> None:
        """Nobody waits: what has not run need not."""
        for exchange in self._waiting:
            if not exchange.answered and exchange.on_gone is not None:
                exchange.on_gone()

    def settle(self) -> None:
        """Send the answers that no earlier call is waited for."""
        waiting = self._waiting
        while waiting and waiting[0].answered:
            answer = waiting.popleft().answer
            self._stream.send(answer)
            self._stream.release()
        if self._ended and not waiting:
            self._stream.finish()


class _Message(Exchange):
    """A call within a stream, whose answer waits for those before it."""

    __slots__ = ("_calls", "_was_answered", "answer")

    def __init__(
        self, calls: InferStream, target: bytes, headers: dict[bytes, bytes], managed: bool
    ) -> None:
        super().__init__(b"POST", target, headers, managed)
        self._calls = calls
        self._was_answered = False
        self.answer = b""

    @property
    def client(self) -> str:
        return self._calls.client

    def respond(
        self, status: int, body: bytes = b"", kind: bytes = PROTOBUF, extra: bytes = b""
    ) -> None:
        assert not self._was_answered, "an exchange has one answer"
        if status != 200:
            self.refuse(status, body.decode("utf-8", "replace"), extra)
            return
        self._was_answered = True
        self.on_gone = None  # it refers to who answers, and that to this: no work for the collector
        self.answer = body
        self._calls.settle()

    def refuse(self, status: int, message: str, extra: bytes = b"") -> int:
        self._was_answered = True
        self.on_gone = None
        identity = id_of(self.body)
        self.answer = chunk(_ERROR, message.encode("utf-8", "replace"))
        if identity:
            self.answer += chunk(_ANSWER, chunk(_ID, identity))
        self._calls.settle()
        return len(self.answer)

    @property
    def answered(self) -> bool:
        return self._was_answered
