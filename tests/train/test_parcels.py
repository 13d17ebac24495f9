"""Values that go from stage to stage: what arrives is what was sent."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.train.stages import parcels

plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text()
shapes = st.lists(st.integers(0, 3), max_size=3)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.bool, torch.int64])
tensors = st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), shapes, dtypes)
values = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(equal(one[key], two[key]) for key in one)
    return type(one) is type(two) and one == two


@given(values)
def test_what_is_received_is_what_was_sent(value: Any) -> None:
    text = parcels.label(value)
    if len(text) > parcels.LABEL_BYTES:
        with pytest.raises(ValueError, match=r"let fewer values pass, or cut elsewhere"):
            parcels.sealed(text)
        return
    assert parcels.opened(parcels.sealed(text)) == text
    into = parcels.blanks(text, torch.device("cpu"))
    for blank, tensor in zip(into, parcels.tensors(value), strict=True):
        blank.copy_(tensor)
    assert equal(parcels.put_together(text, into), value)


def test_a_label_says_which_tensors_want_a_gradient() -> None:
    wants, not_ = torch.ones(2, requires_grad=True), torch.ones(1)
    assert parcels.wanted(parcels.label((wants, 3, [not_, wants]))) == [True, False, True]


def test_a_size_arrives_as_a_tuple() -> None:
    text = parcels.label(torch.ones(2, 3).shape)
    assert parcels.put_together(text, []) == (2, 3)


@pytest.mark.parametrize("value", [torch.float32, object(), OrderedDict(a=1), {1: 2}])
def test_what_is_neither_tensor_nor_plain_data_stays(value: Any) -> None:
    assert not parcels.travels((value,))
    with pytest.raises(ValueError, match=r"a value from one stage to the next: found"):
        parcels.label((value,))


def test_a_label_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found '2049 bytes', allowed: 2048"):
        parcels.sealed("x" * 2049)
