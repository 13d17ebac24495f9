"""What errors say to a person."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.errors import nearest, unknown, wrong


def test_unknown_names_the_offender_the_place_the_nearest_and_what_is_allowed():
    error = unknown("column", "arr_dlay", ["dep_delay", "arr_delay"], "feature Scale('x')")
    assert str(error) == (
        "unknown column 'arr_dlay' in feature Scale('x'). Did you mean 'arr_delay'? "
        "Allowed: arr_delay, dep_delay."
    )


def test_a_name_of_a_million_letters_is_neither_compared_nor_repeated():
    error = str(unknown("column", "delay" * 200_000, ["delay"]))
    assert len(error) < 400
    assert error.startswith("unknown column 'delaydelay")
    assert nearest("delay" * 200_000, ["delay" * 199_999]) is None


def test_unknown_guesses_nothing_where_nothing_is_near():
    assert str(unknown("key", "zzz", ["epochs"])) == "unknown key 'zzz'. Allowed: epochs."
    assert str(unknown("key", "zzz", [])) == "unknown key 'zzz'. Allowed: none."


def test_unknown_cuts_a_long_list():
    message = str(unknown("column", "zzz", [f"c{i:03}" for i in range(300)]))
    assert "c019, … (300 in all)" in message
    assert "c020" not in message


@pytest.mark.parametrize(
    ("found", "expected"), [("LR", "lr"), ("Epochs", "epochs"), ("epoch", "epochs"), ("x", None)]
)
def test_the_nearest_name_is_found_in_either_case(found: str, expected: str | None):
    assert nearest(found, ["lr", "epochs", "momentum"]) == expected


def test_wrong_cuts_a_long_value():
    message = str(wrong("train.lr", "x" * 500, "a number above 0"))
    assert message.startswith("train.lr: found 'xxx")
    assert message.endswith("…, allowed: a number above 0.")
    assert len(message) < 150


@given(
    st.recursive(
        st.none() | st.text() | st.floats(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_what_was_found_is_shown_as_it_is_written(found):
    shown = str(wrong("here", found, "it"))
    whole = repr(found)
    assert shown == f"here: found {whole if len(whole) <= 80 else whole[:77] + '…'}, allowed: it."


def test_what_was_found_is_read_no_further_than_it_is_shown():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert str(wrong("here", deep, "it")) == f"here: found {'[' * 77}…, allowed: it."
    while deep:  # or its end would need as many calls
        deep = deep.pop()
