"""The text format, against the reference parser of prometheus_client."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from drivetrain.watch.exposition import Gauge, Sample, parse, render

text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)
labels = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True), text, max_size=3)
number = st.one_of(st.floats(allow_nan=False), st.sampled_from([math.inf, -math.inf]))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.tuples(labels, number), max_size=4, unique_by=lambda s: str(s[0])))
def test_what_is_written_reads_back_here_and_in_the_reference_parser(samples):
    written = render([Gauge("drift", 'a "help"\nwith \\ lines', samples)])
    assert [(dict(s.labels), s.value) for s in parse(written)] == samples
    families = list(text_string_to_metric_families(written))
    theirs = [(s.labels, s.value) for family in families for s in family.samples]
    assert theirs == samples


def test_a_real_scrape_is_read():
    scrape = (
        "# HELP drivetrain_requests_total Requests.\n"
        "# TYPE drivetrain_requests_total counter\n"
        'drivetrain_requests_total{model="flights",route="/v2/{model}",code="200",} 1027 '
        "1395066363000\n"
        "\n"
        "drivetrain_ready 1\n"
        'drivetrain_request_seconds_bucket{le="+Inf",model="a, \\"b\\"\\n"} 3e2\n'
        "drivetrain_nothing{} NaN\n"
    )
    found = parse(scrape)
    assert found[0] == Sample(
        "drivetrain_requests_total",
        1027.0,
        {"model": "flights", "route": "/v2/{model}", "code": "200"},
    )
    assert found[1] == Sample("drivetrain_ready", 1.0)
    assert found[2].labels == {"le": "+Inf", "model": 'a, "b"\n'}
    assert found[2].value == 300
    assert math.isnan(found[3].value)


@pytest.mark.parametrize(
    "line", ["<html>", "a{b=1} 2", 'a{b="c} 2', "a b", "1a 2", 'a{b="c" d="e"} 1']
)
def test_what_is_no_metric_is_named_with_its_line(line):
    with pytest.raises(ValueError, match=r"line 2 of the metrics: found"):
        parse(f"ok 1\n{line}\n")
