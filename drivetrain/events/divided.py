"""Which part each row of a log belongs to where that hangs on other rows: for ``ColumnSplit``.

A plan sees one row at a time. What is said of a user's first or last rows is said here, over the
keys and times of all rows in memory, before they are written.
"""

from typing import TYPE_CHECKING

from drivetrain.core.errors import wrong
from drivetrain.core.seams import SPLITS

if TYPE_CHECKING:
    from drivetrain.core.batch import Array


def random_parts(
    keys: "Array", *, validate: float = 0.1, test: float = 0.1, seed: int = 0
) -> "Array":
    """The rows of each key divided at random, in shares that are as exact as they can be.

    As RecBole divides (``RS: [0.8, 0.1, 0.1], order: RO, group_by: user``): of a key's ``n`` rows
    ``floor(test * n)`` test and ``floor(validate * n)`` validate, the rest train.

    Args:
        keys: ``[rows]``, such as the users.
        validate: the share of each key's rows that validate.
        test: the share of each key's rows that test.
        seed: another seed divides anew.

    Returns:
        ``train``, ``validate`` or ``test`` for each row, object ``[rows]``.

    Raises:
        ValueError: the shares leave nothing for training.
    """
    import numpy as np

    if not (validate >= 0 and test >= 0 and validate + test < 1):
        found = f"validate={validate} and test={test}"
        raise wrong("random_parts", found, "shares of at least 0 that leave rows for training")
    order = np.random.default_rng(seed).permutation(len(keys))
    place, times = _places(keys, order)
    # A share such as 0.1 is a little more than it says, and of 10 rows it must be one.
    tests, validates = (np.floor(times * share + 1e-9) for share in (test, validate))
    return _named(place >= times - tests, place >= times - tests - validates)


def last_parts(keys: "Array", times: "Array") -> "Array":
    """Of each key the last row tests, the one before it validates, the others train.

    A key with a single row trains, one with two trains and tests. Rows of one time keep the order
    that they have.

    Args:
        keys: ``[rows]``, such as the users.
        times: ``[rows]``, whatever ascends with time.

    Returns:
        ``train``, ``validate`` or ``test`` for each row, object ``[rows]``.
    """
    import numpy as np

    place, count = _places(keys, np.argsort(times, kind="stable"))
    test = (place == count - 1) & (count > 1)
    return _named(test, (place == count - 2) & (count > 2) | test)


def _places(keys: "Array", order: "Array") -> "tuple[Array, Array]":
    """The place of each row among those of its key in an order, and how many those are."""
    import numpy as np

    _, number, count = np.unique(keys, return_inverse=True, return_counts=True)
    by_key = order[np.argsort(number[order], kind="stable")]
    place = np.empty(len(order), np.int64)
    begin = np.cumsum(count) - count
    place[by_key] = np.arange(len(order)) - begin[number[by_key]]
    return place, count[number]


def _named(test: "Array", held_out: "Array") -> "Array":
    import numpy as np

    train, validate, testing = SPLITS
    return np.where(test, testing, np.where(held_out, validate, train)).astype(object)
