"""Parts of a log that hang on a key's other rows."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.seams import SPLITS
from drivetrain.events import ColumnSplit, Parquet
from drivetrain.events.divided import last_parts, random_parts

KEYS = st.lists(st.integers(0, 5), max_size=60)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(keys=KEYS, seed=st.integers(0, 3), shares=st.sampled_from([(0.1, 0.1), (0.25, 0), (0, 0.5)]))
def test_each_key_is_divided_in_its_shares(keys, seed, shares):
    validate, test = shares
    keys = np.array(keys, np.int64)
    parts = random_parts(keys, validate=validate, test=test, seed=seed)
    assert parts.tolist() == random_parts(keys, validate=validate, test=test, seed=seed).tolist()
    for key in set(keys.tolist()):
        own = parts[keys == key].tolist()
        assert own.count("test") == int(test * len(own) + 1e-9)
        assert own.count("validate") == int(validate * len(own) + 1e-9)
        assert own.count("train") == len(own) - own.count("test") - own.count("validate")


def test_every_row_of_a_key_is_as_likely_and_seeds_differ():
    keys = np.repeat(np.array(["a", "b"], object), 10)
    tests = np.zeros(20)
    for seed in range(400):
        parts = random_parts(keys, seed=seed)
        tests += parts == "test"
        assert (parts[:10] == "test").sum() == (parts[10:] == "validate").sum() == 1
    # each is drawn 40 times of 400: five standard deviations
    assert (abs(tests - 40) < 5 * 6).all()


def last_by_hand(keys, times):
    found = ["train"] * len(keys)
    for key in set(keys):
        rows = sorted((t, n) for n, (k, t) in enumerate(zip(keys, times, strict=True)) if k == key)
        if len(rows) > 1:
            found[rows[-1][1]] = "test"
        if len(rows) > 2:
            found[rows[-2][1]] = "validate"
    return found


@settings(derandomize=True, deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40))
def test_the_last_row_tests_and_the_one_before_validates(rows):
    keys, times = [k for k, _ in rows], [t for _, t in rows]
    found = last_parts(np.array(keys, np.int64), np.array(times, np.int64))
    assert found.tolist() == last_by_hand(keys, times)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)])
def test_shares_must_leave_rows_for_training(shares):
    with pytest.raises(ValueError, match="random_parts: found 'validate="):
        random_parts(np.arange(3), validate=shares[0], test=shares[1])


def test_a_column_says_the_split_and_other_words_belong_to_none(tmp_path):
    parts = ["train", "test", None, "validate", "Train", "train", ""]
    pq.write_table(pa.table({"x": [*range(7)], "part": parts}), tmp_path / "rows.parquet")
    table = Parquet(str(tmp_path / "rows.parquet")).split(ColumnSplit("part"))
    read = {
        split: [x for batch in table.batches(split) for x in batch["x"].tolist()]
        for split in SPLITS
    }
    assert read == {"train": [0, 5], "validate": [3], "test": [1]}


def test_a_column_of_numbers_says_no_split(tmp_path):
    pq.write_table(pa.table({"part": [0, 1, 2]}), tmp_path / "rows.parquet")
    table = Parquet(str(tmp_path / "rows.parquet")).split(ColumnSplit("part"))
    with pytest.raises(ValueError, match="column 'part' in ColumnSplit: found 'int64'"):
        list(table.batches("train"))
    with pytest.raises(ValueError, match="unknown column 'prt'"):
        list(Parquet(str(tmp_path / "rows.parquet")).split(ColumnSplit("prt")).batches("train"))
