"""Rows of messages through the steps of a plan; what a step fails on is found, one by one."""

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.events.messages import Refused, Rows
from drivetrain.events.plan import Plan


def clean(plan: Plan, rows: Rows, *, lenient: bool) -> tuple[pa.Table, Array, list[Refused]]:
    """What rows become.

    Args:
        plan: whose steps they go through.
        rows: of a batch of messages.
        lenient: name the messages with a value that a step fails on, and go on with the others.
            Not where the plan remembers: a batch that failed has told it something.

    Returns:
        The rows, int64 ``[rows]`` the message that each came from, and the messages that failed.

    Raises:
        ValueError: a step fails on a value.
    """
    try:
        table, origin = plan.trace(rows.table)
        return table, rows.origin[origin], []
    except ValueError:
        if not lenient or plan.stateful:
            raise
    unfit: dict[int, str] = {}
    pending: list[Array] = [np.arange(len(rows.table))]
    while pending:
        part = pending.pop()
        if not len(part):
            continue
        try:
            plan.trace(rows.table.take(pa.array(part)))
        except ValueError as error:
            if len(part) == 1:
                unfit.setdefault(int(rows.origin[part[0]]), str(error))
            else:
                pending += np.array_split(part, 2)
    fits = np.flatnonzero(~np.isin(rows.origin, list(unfit)))
    table, origin = plan.trace(rows.table.take(pa.array(fits)))
    refused = [Refused(message, reason) for message, reason in unfit.items()]
    return table, rows.origin[fits][origin], refused
