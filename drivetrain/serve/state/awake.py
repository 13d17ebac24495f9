"""A learner at work: what it is told, and what the runs of its version are shown of it."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.serve.execution.live import Moment
from drivetrain.serve.state.published import Published
from drivetrain.serve.state.ring import Event

if TYPE_CHECKING:
    from drivetrain.core.learner import Learner

log = logging.getLogger("drivetrain.serve")


class Awake:
    """A learner that answers. Used on one thread, on which nothing else runs beside a call.

    What it is told is seen once :meth:`show` says so: the items' tensors by the side that is then
    published, users by their rows. Those of the users that it was told of since are kept as they
    were, so a post that takes many turns of the loop is seen whole or not at all.

    Args:
        learner: what it is.
        runs: of its version at once.
    """

    def __init__(self, learner: "Learner", runs: int = 1) -> None:
        self.learner = learner
        learner.changed()
        self.published = Published(learner.shown, runs + 1)
        self._before: dict[Any, dict[str, Array]] = {}

    def tell(self, event: Event) -> tuple[int, int, int]:
        """Learn of a user and an item; how often that was kept, late and missing."""
        user = event[0]
        if user not in self._before:
            self._before[user] = self._rows([user])
        back = self.learner.rolled_back
        try:
            return self.learner.tell(event)
        except Exception:  # the same now and whenever it is told again: it stays left out
            log.exception("an event was left out")
            return 0, 0, 1
        finally:
            if self.learner.rolled_back and not back:
                log.warning("a learner was worse than its training, whose vectors answer again")
                self.show()  # no user is as before, so no item may be

    def show(self) -> None:
        """Let runs that begin from now on see all that it was told."""
        self._before.clear()
        self.published.publish(self.learner.changed())

    def moment(self, users: Array) -> Moment:
        """What was shown last, for a run over such users."""
        values = users.tolist()
        rows = self._rows(values)
        if self._before:
            for at, user in enumerate(values):
                for name, before in self._before.get(user, {}).items():
                    rows[name][at] = before[0]
        learner, published = self.learner, self.published
        side = published.hold()
        whole = {name: side.arrays[name] for name in learner.tensors()}
        find = learner.find(values, rows)
        return Moment(
            rows,
            whole,
            lambda: published.release(side),
            dict if find is None else partial(find, side.arrays),
        )

    def _rows(self, users: Sequence[Any]) -> dict[str, Array]:
        return self.learner.rows(np.array(users, object))


class Learnt:
    """The live tensors of a version's runs; a :class:`drivetrain.serve.execution.live.Live`.

    Args:
        awake: its learner. If its version is no longer served, it goes on being read as it was.
        user: the place of the users' column among those that a request brings.
    """

    def __init__(self, awake: Awake, user: int) -> None:
        self._awake = awake
        self._user = user

    def __call__(self, arrays: Sequence[Array]) -> Moment:
        return self._awake.moment(arrays[self._user])
