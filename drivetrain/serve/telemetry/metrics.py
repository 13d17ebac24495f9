"""The server's own counters and histograms.

Every process counts for itself, in plain numbers, which costs a request next to nothing; where
several serve together, each tells the others what it has counted, and a scrape of any one of them
shows the sum of all.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from drivetrain.serve.execution import statistics
from drivetrain.serve.execution.statistics import Tally
from drivetrain.serve.telemetry.family import OLDER, Counter, Family, Figures, Histogram, Reading

RETIRED = 8
"""Versions of an alias that are told of after they were served, the last of them: enough to
compare with, and a server that lives for years and hundreds of versions grows by none of them."""
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Bounds of durations: a cheap graph answers in 50 µs, a hopeless request ends at 10 s."""
LOOKUPS = (*(1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5), *SECONDS)
"""Bounds of what it takes to look windows up: in memory some microseconds."""
ROWS = tuple(float(2**n) for n in range(13))
"""Bounds of batch sizes, 1 to 4096."""
DECILES = tuple(n / 10 for n in range(1, 11))
"""Bounds of predictions: deciles of a probability. Of a prediction that is no probability only
the mean (sum over count) says something."""
DIFFERENCES = (
    *(0.0, 1e-6, 1e-5, 1e-4, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
"""Bounds of differences between two probabilities: none, rounding, a little, a lot."""

_LEARNER = (
    ("events", "Events that the version learnt of.", "learnt"),
    ("new_users", "Users that training did not have.", "new_users"),
    ("new_items", "Items that training did not have.", "new_items"),
    ("refused", "Events whose new item found no place.", "refused"),
    ("auc", "Progressive AUC of what was learnt, over the latest events.", "auc_online"),
    ("frozen_auc", "The same of what training left.", "auc_frozen"),
    ("rolled_back", "1 if training's vectors answer, for those learnt were worse.",
     "rolled_back"),
    ("bytes", "Memory of what was learnt.", "bytes"),
)  # fmt: skip
"""Of the learner of an alias' stable version: a new version begins anew. Name, text, and the
learner's own name of it."""


class Metrics:
    """Every metric of a serving process. The names are a contract with dashboards and alerts."""

    def __init__(self) -> None:
        self.requests = Family(
            "drivetrain_requests_total", "counter", "Requests answered.",
            ("model", "version", "route", "code"), Counter,
        )  # fmt: skip
        self.request_seconds = Family(
            "drivetrain_request_seconds", "histogram", "From a request's arrival to its answer.",
            ("model", "version", "route"), lambda: Histogram(SECONDS),
        )  # fmt: skip
        self.inference_seconds = Family(
            "drivetrain_inference_seconds", "histogram", "One run of the graph over a batch.",
            ("model", "version"), lambda: Histogram(SECONDS),
        )  # fmt: skip
        self.batch_rows = Family(
            "drivetrain_batch_rows", "histogram", "Rows of one run of the graph.",
            ("model", "version"), lambda: Histogram(ROWS),
        )  # fmt: skip
        self.queue_rows = Family(
            "drivetrain_queue_rows", "gauge", "Rows that wait for a run of the graph.",
            ("model",), lambda: Reading(lambda: 0.0),
        )  # fmt: skip
        self.prediction = Family(
            "drivetrain_prediction", "histogram",
            "Predicted values, by deciles of a probability.",
            ("model", "version", "output"), lambda: Histogram(DECILES),
        )  # fmt: skip
        self.model_info = Family(
            "drivetrain_model_info", "gauge", "1 for each served version, in its role.",
            ("model", "version", "digest", "role"), Counter, max,
        )  # fmt: skip
        self.placement_info = Family(
            "drivetrain_placement_info", "gauge", "1 for where each version runs.",
            ("model", "version", "placement"), Counter, max,
        )  # fmt: skip
        self.traffic_share = Family(
            "drivetrain_traffic_share", "gauge",
            "Share of the requests to the model that a version answers.",
            ("model", "version", "role"), Counter, max,
        )  # fmt: skip
        self.canaries_stopped = Family(
            "drivetrain_canaries_stopped_total", "counter",
            "Canaries that get no more requests, because they failed where the stable version "
            "did not; counted by each process.", ("model", "version"), Counter,
        )  # fmt: skip
        self.shadow_requests = Family(
            "drivetrain_shadow_requests_total", "counter",
            "Answered requests that were to be asked of a shadow too, by what became of them.",
            ("model", "version", "outcome"), Counter,
        )  # fmt: skip
        self.shadow_difference = Family(
            "drivetrain_shadow_difference", "histogram",
            "How far a shadow's output lies from the answer: of a number the absolute difference, "
            "of anything else 0 if it is the same and 1 if not.",
            ("model", "version", "against", "output"), lambda: Histogram(DIFFERENCES),
        )  # fmt: skip
        self.reload_failures = Family(
            "drivetrain_reload_failures_total", "counter",
            "New versions that were refused while the old one served on.", ("model",), Counter,
        )  # fmt: skip
        self.feedback_rows = Family(
            "drivetrain_feedback_rows_total", "counter", "Rows written as events.",
            ("model",), Counter,
        )  # fmt: skip
        self.feedback_dropped = Family(
            "drivetrain_feedback_dropped_total", "counter",
            "Rows that were not written as events, because the writer was behind or failed.",
            ("model",), Counter,
        )  # fmt: skip
        self.feedback_deleted = Family(
            "drivetrain_feedback_files_deleted_total", "counter",
            "Files of events that were deleted, because they were too old or too many.",
            ("model",), Counter,
        )  # fmt: skip
        self.observations = Family(
            "drivetrain_window_observations_total", "counter",
            "What became of observations, by track that they feed; of ignored and refused, rows.",
            ("model", "outcome"), Counter,
        )  # fmt: skip
        self.windows_begun = Family(
            "drivetrain_window_tracks_begun_total", "counter",
            "Tracks of windows that began with no observations.", ("model",), Counter,
        )  # fmt: skip
        self.windows_empty = Family(
            "drivetrain_window_rows_empty_total", "counter",
            "Rows whose windows were left empty, because what is kept could not be asked.",
            ("model",), Counter,
        )  # fmt: skip
        self.lookup_seconds = Family(
            "drivetrain_window_lookup_seconds", "histogram",
            "The windows of one batch.", ("model",), lambda: Histogram(LOOKUPS),
        )  # fmt: skip
        gauges = (
            ("keys", "Keys with observations, of all tracks."),
            ("bytes", "Memory of all tracks."),
            ("key_bytes", "Memory of a key of a track, the mean."),
            ("watermark_lag_seconds", "How long ago the latest observation became known."),
        )
        windows = [
            Family(f"drivetrain_window_{name}", "gauge", text, ("model",), _nothing)
            for name, text in gauges
        ]
        self.window_keys, self.window_bytes, self.window_key_bytes, self.watermark_lag = windows
        self._learner = {
            figure: Family(f"drivetrain_learner_{name}", "gauge", text, ("model",), _nothing)
            for name, text, figure in _LEARNER
        }
        self.access_dropped = Family(
            "drivetrain_access_lines_dropped_total", "counter",
            "Lines that the access log did not take.", (), Counter,
        )  # fmt: skip
        self.trace_spans = Family(
            "drivetrain_trace_spans_total", "counter", "Spans that a collector took.",
            (), Counter,
        )  # fmt: skip
        self.trace_dropped = Family(
            "drivetrain_traces_dropped_total", "counter",
            "Sampled requests whose spans no collector took, or that were too many to hold.",
            (), Counter,
        )  # fmt: skip
        self.ready = Family(
            "drivetrain_ready", "gauge", "1 while every process of the server takes requests.",
            (), Counter, min,
        )  # fmt: skip
        memory = Family(
            "process_resident_memory_bytes", "gauge",
            "Resident memory, all processes that serve; pages that they share count for each.",
            (), lambda: Reading(resident_bytes),
        )  # fmt: skip
        cpu = Family(
            "process_cpu_seconds_total", "counter", "CPU time, user and system.",
            (), lambda: Reading(time.process_time),
        )  # fmt: skip
        for family in (memory, cpu, self.ready):
            family.of()
        self.statistics = Family(
            statistics.NAME, "counter", "What V2 tells of a version; Prometheus has its own.",
            ("model", "version"), Tally,
        )  # fmt: skip
        self._families: tuple[Family[Counter] | Family[Reading] | Family[Histogram], ...] = (
            *(self.requests, self.request_seconds, self.inference_seconds, self.batch_rows),
            *(self.queue_rows, self.prediction, self.model_info, self.reload_failures),
            *(self.placement_info, self.traffic_share, self.canaries_stopped),
            *(self.shadow_requests, self.shadow_difference),
            *(self.feedback_rows, self.feedback_dropped, self.feedback_deleted),
            *(self.observations, self.windows_begun, self.windows_empty, self.lookup_seconds),
            *windows,
            *self._learner.values(),
            *(self.access_dropped, self.trace_spans, self.trace_dropped),
            *(self.ready, memory, cpu),
        )

        self._shared = (*self._families, self.statistics)
        self._retired: dict[tuple[str, str], None] = {}
        self.others: Callable[[], Sequence[Figures]] = tuple
        """Gives what the other processes of this server have counted."""

    def text(self) -> bytes:
        """The exposition of all metrics, of all processes."""
        others = self.others()
        lines = (line for family in self._families for line in family.text(others))
        return ("\n".join(lines) + "\n").encode()

    def show_learner(self, model: str, figure: Callable[[str], float | None]) -> None:
        """Tell of what an alias learns while it is served.

        Args:
            model: the alias.
            figure: gives a figure of its learner by name; None while there is none.
        """
        for name, family in self._learner.items():
            family.set(Reading(partial(figure, name)), model)

    def serve(self, model: str, version: str) -> None:
        """A version of an alias is served from now on."""
        self._retired.pop((model, version), None)

    def retire(self, model: str, version: str) -> None:
        """It is not any more. What it has counted stays until :data:`RETIRED` others have gone
        too."""
        self._retired.pop((model, version), None)
        self._retired[model, version] = None
        gone = [pair for pair in self._retired if pair[0] == model]
        for pair in gone[:-RETIRED]:
            del self._retired[pair]
            for family in self._families:
                family.forget(*pair, heir=OLDER)
            self.statistics.forget(*pair)

    def figures(self) -> Figures:
        """What this process has counted."""
        return {family.name: list(family.numbers().items()) for family in self._shared}

    def inherit(self, figures: Figures) -> None:
        """Count on from where a process that has ended stopped."""
        for family in self._shared:
            if family.lasting:
                for values, numbers in figures.get(family.name, ()):
                    family.of(*values).add(numbers)
        # Those that are served yet will say so; the rest would stay for ever.
        for family in self._shared:
            self._retired |= dict.fromkeys(family.versions())

    def of_ended(self, figures: Figures) -> Figures:
        """What still counts of a process that has ended, or has not begun: it is not ready."""
        lasting = {family.name for family in self._shared if family.lasting}
        kept = {name: series for name, series in figures.items() if name in lasting}
        return {**kept, self.ready.name: [((), (0.0,))]}


def _nothing() -> Reading:
    return Reading(lambda: 0.0)


def resident_bytes() -> float:
    """The resident memory of this process; its peak where the system does not tell the present."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else peak * 1024)
