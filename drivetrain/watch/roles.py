"""PromQL that tells a canary from the stable version beside it.

A version keeps its series when its role changes, so what a role did is found by joining the series
with ``drivetrain_model_info``, which says who has which role now.
"""


def in_role(series: str, role: str, of: str) -> str:
    """Of an instant vector, the series of the version in a role.

    Args:
        series: such as ``rate(drivetrain_requests_total{model="m"}[5m])``.
        role: ``stable``, ``canary`` or ``shadow``.
        of: the matcher that names the model.
    """
    info = f'drivetrain_model_info{{{of}, role="{role}"}}'
    return f"({series} and on (job, instance, model, version) {info})"


def requests(role: str, of: str, interval: str) -> str:
    """Requests a second that the version in a role has answered."""
    rate = f"rate(drivetrain_requests_total{{{of}}}[{interval}])"
    return f"sum({in_role(rate, role, of)})"


def error_share(role: str, of: str, interval: str) -> str:
    """Of those answers, the share of server errors."""
    failed = f'rate(drivetrain_requests_total{{{of}, code=~"5.."}}[{interval}])'
    return f"(sum({in_role(failed, role, of)}) or vector(0)) / {requests(role, of, interval)}"


def latency(q: float, role: str, of: str, interval: str) -> str:
    """A quantile of the seconds that the version in a role takes for a request."""
    rate = f"rate(drivetrain_request_seconds_bucket{{{of}}}[{interval}])"
    return f"histogram_quantile({q:g}, sum by (le) ({in_role(rate, role, of)}))"


def distance(of: str, interval: str) -> str:
    """How far the canary's predictions lie from the stable version's, for each output.

    It is the Kolmogorov-Smirnov distance, 0 to 1, as the bounds of the histogram show it: the
    greatest difference between the two shares of predictions at or below a bound.
    """

    def shares(role: str) -> str:
        bucket, count = (
            in_role(f"rate(drivetrain_prediction_{part}{{{of}}}[{interval}])", role, of)
            for part in ("bucket", "count")
        )
        below, all_of_them = f"sum by (output, le) ({bucket})", f"sum by (output) ({count})"
        return f"{below} / on (output) group_left () {all_of_them}"

    return f"max by (output) (abs({shares('canary')} - {shares('stable')}))"
