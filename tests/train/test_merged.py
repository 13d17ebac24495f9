"""Several splits as one: all of their rows, each once, wherever one begins."""

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.schema import FeatureSchema, Field, Schema
from drivetrain.train.recall.merged import MergedExamples

ROWS = {"train": 7, "validate": 4, "test": 3}


class Numbers:
    """Examples and events: 0 to 6 for training, 100 to 103 for validation, 200 to 202."""

    schema = targets = Schema((Field("n", "int64"),))
    features = FeatureSchema(())

    @property
    def events(self):
        return self

    def rows(self, split):
        return ROWS[split]

    def batches(self, split, shard=None, *, size=3, order=None, start=0):
        numbers = np.arange(ROWS[split]) + 100 * [*ROWS].index(split)
        for first in range(start, ROWS[split], size):
            yield Batch({"n": numbers[first : first + size]})


MERGED = MergedExamples(Numbers(), ("train", "validate"))


def numbers(batches) -> list[int]:
    return [n for batch in batches for n in batch["n"].tolist()]


@pytest.mark.parametrize("start", range(12))
@pytest.mark.parametrize("size", [1, 3, 20])
def test_training_has_the_rows_of_both_from_any_row_on(start: int, size: int) -> None:
    whole = [*range(7), *range(100, 104)]
    assert numbers(MERGED.batches("train", size=size, start=start)) == whole[start:]


def test_what_was_learnt_from_judges_nothing_and_the_test_stays() -> None:
    assert [MERGED.rows(split) for split in ("train", "validate", "test")] == [11, 0, 3]
    assert numbers(MERGED.batches("validate", size=2)) == []
    assert numbers(MERGED.batches("test", size=2)) == [200, 201, 202]
    assert numbers(MERGED.events.batches("train")) == [*range(7), *range(100, 104)]
    assert numbers(MERGED.events.batches("validate")) == []
