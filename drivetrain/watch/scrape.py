"""What a server did between two scrapes of its metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from drivetrain.core.errors import wrong
from drivetrain.watch.exposition import Sample, parse

LARGEST = 16 << 20
"""Bytes of metrics that are read at most."""


@dataclass(frozen=True)
class Scrape:
    """The samples of one moment, ``at`` in seconds of any clock."""

    at: float
    samples: tuple[Sample, ...]

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of the samples that have these labels; None when there is none."""
        values = [sample.value for sample in self._of(name, labels)]
        return sum(values) if values else None

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The same sum for each value of ``label``."""
        found: dict[str, float] = {}
        for sample in self._of(name, labels):
            key = sample.labels.get(label, "")
            found[key] = found.get(key, 0.0) + sample.value
        return found

    def _of(self, name: str, labels: Mapping[str, str]) -> list[Sample]:
        return [
            sample
            for sample in self.samples
            if sample.name == name
            and all(sample.labels.get(key) == value for key, value in labels.items())
        ]


class _Stay(HTTPRedirectHandler):
    """Follows no redirection: a token is for the address that it was given for."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere else; urllib then raises the answer as an error."""


def fetch(url: str, at: float, timeout: float = 2.0, token: str | None = None) -> Scrape:
    """Scrape ``url`` + ``/metrics``; no proxy stands between.

    Args:
        url: the server's address.
        at: the time of the scrape, in seconds of the caller's clock.
        timeout: in seconds.
        token: what a server asks for that listens beyond the loopback.

    Raises:
        ValueError: the address is no HTTP address, or the answer is not of the format.
        OSError: no answer, or a refusal.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise wrong("url", url, "an address such as http://127.0.0.1:8080")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = Request(url.rstrip("/") + "/metrics", headers=headers)
    opener = build_opener(ProxyHandler({}), _Stay)
    try:
        with opener.open(request, timeout=timeout) as answer:
            body = answer.read(LARGEST)
    except HTTPError as error:
        error.close()
        raise OSError(f"{url}: {error.code} {error.reason}") from None
    except URLError as error:
        raise OSError(f"{url}: {error.reason}") from None
    return Scrape(at, tuple(parse(body.decode(errors="replace"))))


@dataclass(frozen=True)
class Between:
    """The growth of counters from one scrape to a later one; from the start if there is none."""

    before: Scrape | None
    after: Scrape

    @property
    def seconds(self) -> float | None:
        """The time between; None since the start of the server."""
        return None if self.before is None else self.after.at - self.before.at

    def growth(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """How far a counter grew, by the values of ``label``; one that fell had started anew."""
        now = self.after.by(label, name, **labels)
        then = {} if self.before is None else self.before.by(label, name, **labels)
        return {
            key: value - then.get(key, 0.0) if value >= then.get(key, 0.0) else value
            for key, value in now.items()
        }

    def quantile(self, q: float, histogram: str, **labels: str) -> float | None:
        """A quantile of what a histogram took in, as PromQL's ``histogram_quantile`` gives it.

        None when it took in nothing.
        """
        buckets = sorted(
            (float(le.replace("Inf", "inf")), count)
            for le, count in self.growth("le", f"{histogram}_bucket", **labels).items()
        )
        total = buckets[-1][1] if buckets else 0.0
        if not total > 0:
            return None
        rank, low, below = q * total, 0.0, 0.0
        for high, count in buckets:
            if count >= rank and count > below:
                if high == float("inf"):
                    return low
                return low + (high - low) * max(rank - below, 0.0) / (count - below)
            low, below = high, count
        return low

    def mean(self, label: str, histogram: str, **labels: str) -> dict[str, float]:
        """The mean of what a histogram took in, by the values of ``label``."""
        counts = self.growth(label, f"{histogram}_count", **labels)
        sums = self.growth(label, f"{histogram}_sum", **labels)
        return {key: sums.get(key, 0.0) / count for key, count in counts.items() if count > 0}


@dataclass(frozen=True, kw_only=True)
class Service:
    """How a server does with one model.

    Attributes:
        seconds: over which rates, shares, percentiles and means are taken; None for since the
            server started.
        ready: whether it takes requests.
        version: the version that answers; of a canary beside it the figures of its own are on
            the dashboard.
        digest: its bundle.
        requests: answered since it started.
        requests_per_s: answered, of any code.
        error_share: of answers with a code of 500 and above.
        refused_share: of answers with a code of 400 to 499.
        p50_ms: median time of a request, in milliseconds.
        p99_ms: its 99th percentile.
        batch_rows: mean rows that ran at once in that version.
        queue_rows: rows that wait now.
        predictions: the mean of each of its outputs.
        memory_bytes: resident.
        cores: processor time taken, in seconds a second.
        feedback_rows: kept since the server started.
        feedback_dropped: lost since the server started.
        learnt: events that the version learnt of; None where nothing learns.
        auc: progressive, of what was learnt.
        frozen_auc: the same, of what training left.
        rolled_back: whether training's vectors answer again, for those learnt were worse.
    """

    seconds: float | None = None
    ready: bool | None = None
    version: str = ""
    digest: str = ""
    requests: float = 0.0
    requests_per_s: float | None = None
    error_share: float | None = None
    refused_share: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    batch_rows: float | None = None
    queue_rows: float | None = None
    predictions: Mapping[str, float] = field(default_factory=dict[str, float])
    memory_bytes: float | None = None
    cores: float | None = None
    feedback_rows: float | None = None
    feedback_dropped: float | None = None
    learnt: float | None = None
    auc: float | None = None
    frozen_auc: float | None = None
    rolled_back: bool = False


def service(between: Between, model: str) -> Service:
    """What two scrapes tell of a model."""
    now, seconds = between.after, between.seconds
    codes = between.growth("code", "drivetrain_requests_total", model=model)
    answered = sum(codes.values())
    info = [s.labels for s in now.samples if s.name == "drivetrain_model_info" and s.value > 0]
    ours = [labels for labels in reversed(info) if labels.get("model") == model]
    known = next((labels for labels in ours if labels.get("role", "stable") == "stable"), {})
    # A canary's and a shadow's runs must not pass for those of the version that answers.
    of = {"model": model, **({"version": known["version"]} if "role" in known else {})}
    rows = between.mean("model", "drivetrain_batch_rows", **of)
    cpu = sum(between.growth("instance", "process_cpu_seconds_total").values())
    ready = now.total("drivetrain_ready")

    def milliseconds(q: float) -> float | None:
        found = between.quantile(q, "drivetrain_request_seconds", model=model)
        return None if found is None else found * 1000

    def share(counts: Callable[[str], bool]) -> float | None:
        return sum(n for code, n in codes.items() if counts(code)) / answered if answered else None

    totals: dict[str, Any] = {
        "queue_rows": now.total("drivetrain_queue_rows", model=model),
        "feedback_rows": now.total("drivetrain_feedback_rows_total", model=model),
        "feedback_dropped": now.total("drivetrain_feedback_dropped_total", model=model),
        "learnt": now.total("drivetrain_learner_events", model=model),
        "auc": now.total("drivetrain_learner_auc", model=model),
        "frozen_auc": now.total("drivetrain_learner_frozen_auc", model=model),
        "rolled_back": bool(now.total("drivetrain_learner_rolled_back", model=model)),
        "memory_bytes": now.total("process_resident_memory_bytes"),
    }
    return Service(
        seconds=seconds,
        ready=None if ready is None else ready > 0,
        version=known.get("version", ""),
        digest=known.get("digest", ""),
        requests=now.total("drivetrain_requests_total", model=model) or 0.0,
        requests_per_s=answered / seconds if seconds else None,
        error_share=share(lambda code: code.startswith("5")),
        refused_share=share(lambda code: code.startswith("4")),
        p50_ms=milliseconds(0.5),
        p99_ms=milliseconds(0.99),
        batch_rows=rows.get(model),
        predictions=between.mean("output", "drivetrain_prediction", **of),
        cores=cpu / seconds if seconds else None,
        **totals,
    )
