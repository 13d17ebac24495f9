"""What each worker has counted, for all of them to tell."""

import logging

import msgspec

from drivetrain.serve.telemetry.family import Figures
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.workers.seat import Seat

log = logging.getLogger("drivetrain.serve")


class Counts:
    """One worker's counts beside those of the others; it goes on from its predecessor's.

    Args:
        seat: this worker's.
        metrics: what it counts; made to tell what the others have counted too.
    """

    def __init__(self, seat: Seat, metrics: Metrics) -> None:
        self._seat = seat
        self._metrics = metrics
        self._told = False
        metrics.inherit(self._figures(seat.number))
        metrics.others = self._others

    def publish(self) -> None:
        """Let the other workers know what this one has counted: a few times a second, so that
        what is lost when it is killed is what it counted since."""
        try:
            text = msgspec.msgpack.encode(self._metrics.figures())
            self._seat.board.write(self._seat.number, text)
        except ValueError as error:
            if not self._told:  # once, not four times a second
                log.error("worker %d cannot share its metrics: %s", self._seat.number, error)
            self._told = True

    def _others(self) -> list[Figures]:
        """What the other workers have counted; never less than they saw at their last look."""
        self.publish()
        board = self._seat.board
        found: list[Figures] = []
        for number in range(board.seats):
            if number != self._seat.number:
                figures = self._figures(number)
                live = board.live(number)
                found.append(figures if live else self._metrics.of_ended(figures))
        return found

    def _figures(self, number: int) -> Figures:
        """What the last process in a seat had counted."""
        text = self._seat.board.read(number)
        return msgspec.msgpack.decode(text) if text else {}
