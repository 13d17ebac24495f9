"""Examples: every row once, in a repeatable order, cached or streamed."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numbered import TARGETS, Numbered, Twice, made, numbers

import drivetrain.features.order as order_module
from drivetrain.core.batch import Batch
from drivetrain.core.metric import Metric, Progress
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import Order, Shard, Split
from drivetrain.features.examples import Examples

some = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=["cached", "streamed"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "cache" if request.param == "cached" else None


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a few dozen rows, so that small tests cross their borders."""
    monkeypatch.setattr(order_module, "WINDOW_BYTES", 16 * 80 * 3)


def test_without_an_order_the_sources_order_stands(cache: Path | None) -> None:
    assert numbers(made(100, cache).batches("train", size=9)) == list(range(100))


def test_batches_have_the_size_but_for_the_last(cache: Path | None, small_windows: None) -> None:
    for order in (None, Order(1, 2)):
        sizes = [len(batch) for batch in made(100, cache).batches("train", size=9, order=order)]
        assert sizes == [9] * 11 + [1]


def test_dtypes_and_memory_are_what_a_module_takes(cache: Path | None) -> None:
    examples = made(50, cache)
    for order in (None, Order()):
        for batch in examples.batches("train", size=8, order=order):
            kinds = {name: (column.dtype.name, column.shape[1:]) for name, column in _plain(batch)}
            assert kinds == {
                "dense": ("float32", (2,)),
                "index": ("int64", (1,)),
                "words": ("int64", (3,)),
                "image": ("float32", (2, 2)),
                "late": ("int64", ()),
                "delay": ("float64", ()),
            }
            assert all(c.flags.c_contiguous and c.flags.writeable for _, c in _plain(batch))


def _plain(batch: Batch) -> list[tuple[str, np.ndarray[Any, Any]]]:
    return [(name, batch[name]) for name in batch.columns]


@some
@given(
    length=st.integers(0, 300),
    size=st.integers(5, 60),
    start=st.integers(0, 12),
    count=st.integers(1, 5),
    order=st.one_of(st.none(), st.builds(Order, st.integers(-9, 9), st.integers(0, 3))),
)
def test_every_row_comes_once_over_the_shards_and_a_start_skips_rows(
    tmp_path_factory: pytest.TempPathFactory,
    small_windows: None,
    length: int,
    size: int,
    start: int,
    count: int,
    order: Order | None,
) -> None:
    for cache in (None, tmp_path_factory.mktemp("cache")):
        examples = made(length, cache)
        whole: list[int] = []
        for index in range(count):
            shard = Shard(index, count)
            batches = list(examples.batches("train", shard, size=size, order=order))
            skipped = start * size
            later = examples.batches("train", shard, size=size, order=order, start=skipped)
            assert numbers(later) == numbers(batches[start:])
            share = size // count + (index < size % count)
            assert all(len(batch) == share for batch in batches[:-1])
            whole += numbers(batches)
        assert sorted(whole) == list(range(length))


def test_shards_share_the_batches_of_the_one_order(tmp_path: Path, small_windows: None) -> None:
    examples, order = made(101, tmp_path), Order(3, 4)
    whole = list(examples.batches("train", size=39, order=order))
    shards = [list(examples.batches("train", Shard(i, 4), size=39, order=order)) for i in range(4)]
    for batch, *parts in zip(whole, *shards, strict=True):
        assert numbers(parts) == numbers([batch])
    assert [[len(batch) for batch in batches] for batches in shards] == [
        [10, 10, 6],
        [10, 10, 6],
        [10, 10, 6],
        [9, 9, 5],
    ]


def test_a_shard_for_which_no_row_was_left_still_has_its_turn(tmp_path: Path) -> None:
    examples = made(42, tmp_path)
    shards = [list(examples.batches("train", Shard(i, 4), size=40)) for i in range(4)]
    sizes = [[len(batch) for batch in batches] for batches in shards]
    assert sizes == [[10, 1], [10, 1], [10, 0], [10, 0]]
    assert shards[3][1]["dense"].shape == (0, 2)


def test_another_number_of_shards_goes_on_where_the_first_stopped(
    tmp_path: Path, small_windows: None
) -> None:
    examples, order = made(250, tmp_path), Order(5, 1)
    begun = [
        next(iter(examples.batches("train", Shard(i, 3), size=60, order=order))) for i in range(3)
    ]
    rest = [
        numbers(examples.batches("train", Shard(i, 2), size=60, order=order, start=60))
        for i in range(2)
    ]
    assert sorted([*numbers(begun), *rest[0], *rest[1]]) == list(range(250))


def test_an_order_is_the_same_each_time_and_another_each_epoch(
    cache: Path | None, small_windows: None
) -> None:
    examples = made(500, cache)

    def rows(seed: int, epoch: int) -> list[int]:
        return numbers(examples.batches("train", size=16, order=Order(seed, epoch)))

    first = rows(1, 0)
    assert first == rows(1, 0)
    assert first != rows(1, 1)
    assert first != rows(2, 0)
    assert first != sorted(first)


def test_one_window_is_shuffled_uniformly(tmp_path: Path) -> None:
    examples = made(4, tmp_path)
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(2400):
        rows = tuple(numbers(examples.batches("train", size=4, order=Order(0, epoch))))
        seen[rows] = seen.get(rows, 0) + 1
    assert len(seen) == 24
    chi_squared = sum((count - 100) ** 2 / 100 for count in seen.values())
    assert chi_squared < 49.7  # 23 degrees of freedom, p = 0.001


def test_later_epochs_read_the_cache_alone(tmp_path: Path) -> None:
    examples = made(30, tmp_path / "a")
    numbers(examples.batches("train", size=8))
    again = made(30, tmp_path / "a")
    assert numbers(again.batches("train", size=8, order=Order())) != list(range(30))
    assert again.rows("train") == 30
    assert again.source.read == []
    assert again.transform.transformed == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [".train.lock", "train"]


def test_skipped_windows_are_not_read(
    tmp_path: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = made(500, tmp_path)
    numbers(examples.batches("train", size=10))
    asked: list[int] = []
    read = order_module.Windows._part

    def spy(self: Any, number: int, *rest: Any) -> Any:
        asked.append(number)
        return read(self, number, *rest)

    monkeypatch.setattr(order_module.Windows, "_part", spy)
    numbers(examples.batches("train", size=10, order=Order(), start=450))
    windows = len(order_module.Windows.of(500, examples._blocks("train").row_bytes, Order())._spans)
    assert windows > 5
    assert asked
    assert min(asked) >= windows - 2


def test_skipped_rows_are_not_transformed_without_a_cache() -> None:
    examples = made(100)
    numbers(examples.batches("train", size=10, start=80))
    assert examples.transform.transformed == 20


def test_rows_are_known_with_a_cache_only(tmp_path: Path) -> None:
    assert made(30, tmp_path).rows("validate") == 30
    assert made(30).rows("validate") is None


def test_a_held_batch_does_not_change(tmp_path: Path, small_windows: None) -> None:
    batches = list(made(300, tmp_path).batches("train", size=16, order=Order()))
    assert sorted(numbers(batches)) == list(range(300))


@pytest.mark.parametrize("length", [0, 1])
def test_hardly_any_rows(cache: Path | None, length: int) -> None:
    assert numbers(made(length, cache).batches("train", size=4, order=Order())) == list(
        range(length)
    )


def test_a_batch_without_rows_is_passed_over(cache: Path | None) -> None:
    class Halting(Numbered):
        def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
            for batch in super().batches(split, shard):
                yield batch.slice(0, 0)
                yield batch

    examples = Examples(Halting(20), Twice(), TARGETS, cache)
    assert numbers(examples.batches("train", size=4)) == list(range(20))


def test_missing_targets_are_refused_with_the_way_out(tmp_path: Path) -> None:
    examples = made(30, tmp_path / "a", lacks=(3, 5, 29))
    expected = r"target 'late': found 3 missing among 30 rows of split 'train'.*is_not_null"
    with pytest.raises(ValueError, match=expected):
        examples.batches("train", size=8)
    assert not (tmp_path / "a" / "train").exists()
    with pytest.raises(ValueError, match="target 'late': found 1 missing among 7 rows"):
        numbers(made(30, lacks=(9,)).batches("train", size=8))


def test_targets_must_be_numeric_columns() -> None:
    with pytest.raises(ValueError, match="Did you mean 'late'"):
        Examples(Numbered(3), Twice(), Schema((Field("lite", "int64"),)))
    with pytest.raises(ValueError, match="target 'text': found 'string'"):
        Examples(Numbered(3), Twice(), Schema((Field("text", "string"),)))


def test_arguments_out_of_range_are_refused(cache: Path | None) -> None:
    examples = made(3, cache)
    for mistake in (
        {"size": 0},
        {"size": 1, "start": -1},
        {"size": 2, "shard": Shard(2, 2)},
        {"size": 1, "shard": Shard(0, 2)},
    ):
        with pytest.raises(ValueError, match="allowed"):
            examples.batches("train", **mistake)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        examples.batches("trian", size=1)  # pyright: ignore[reportArgumentType]


def test_leaving_an_epoch_early_ends_its_thread(tmp_path: Path, small_windows: None) -> None:
    before = threading.active_count()
    batches = made(500, tmp_path).batches("train", size=8, order=Order())
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


def test_progress_and_figures_are_emitted(tmp_path: Path) -> None:
    heard: list[Any] = []
    examples = Examples(Numbered(30), Twice(), TARGETS, tmp_path, emit=heard.append)
    numbers(examples.batches("train", size=8))
    assert [i.done for i in heard if isinstance(i, Progress)] == [7, 14, 21, 28, 30]
    figures = {item.name: item.value for item in heard if isinstance(item, Metric)}
    assert figures["examples/train_rows"] == 30
    assert figures["examples/train_seconds"] > 0


@some
@given(rows=st.lists(st.integers(0, 29), max_size=12))
def test_rows_are_taken_by_number_in_the_order_given(rows: list[int], tmp_path: Path) -> None:
    examples = made(30, tmp_path / "cache")
    (whole,) = examples.batches("train", size=30)
    taken = examples.take("train", np.array(rows, np.int64))
    assert taken.columns.keys() == whole.columns.keys()
    for name, column in taken.columns.items():
        assert column.dtype == whole[name].dtype
        assert column.flags.writeable
        assert np.array_equal(column, whole[name][rows])


def test_rows_have_numbers_with_a_cache_only() -> None:
    with pytest.raises(ValueError, match="nobody can count"):
        made(30).take("train", np.array([0]))
