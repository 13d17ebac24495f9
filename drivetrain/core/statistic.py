"""The closed set of mergeable statistics that features ask for and engines compute.

A statistic is a declaration; what an engine answers is its *value*. Values of one statistic over
any partition of the rows merge to the value over all rows: counts, extremes, quantile sketches,
vocabularies (up to their capacity) and distinct counts exactly, moments to rounding.
"""

from dataclasses import dataclass
from typing import Literal

Map = Literal["identity", "signed_log"]


@dataclass(frozen=True)
class Moments:
    """Count, missing count, mean, variance, minimum and maximum of a numeric column.

    ``of="signed_log"`` takes them of ``sign(x) * log(1 + |x|)``.
    """

    column: str
    of: Map = "identity"


@dataclass(frozen=True)
class Quantiles:
    """A quantile sketch of a numeric column."""

    column: str


@dataclass(frozen=True)
class TopK:
    """How often each value of a string or integer column occurs, the commonest ``capacity``.

    Exact, also after merging, while the column has at most ``capacity`` distinct values.
    """

    column: str
    capacity: int = 1 << 20


@dataclass(frozen=True)
class Distinct:
    """About how many distinct values a string or integer column has (HyperLogLog, 1.6 %)."""

    column: str


Statistic = Moments | Quantiles | TopK | Distinct
