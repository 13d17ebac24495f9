"""Rows of a table: where they lie, what they begin with, and that they learn as torch's do."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.train.rows.held_rows import HeldRows, TableShape, summed
from drivetrain.train.rows.optimizers import ROW_OPTIMIZERS, RowSGD
from drivetrain.train.rows.spread import MOST_ROWS, Spread, Start

NORMAL = Start("normal", 0.0, 0.05)


def held(rows: int, dim: int = 3, shards: int = 1, shard: int = 0, name: str = "sgd") -> HeldRows:
    shape = TableShape("t", rows, dim, NORMAL)
    optimizer = ROW_OPTIMIZERS[name]((0.9, 0.99))
    return HeldRows(shape, Spread(rows, shards), shard, optimizer, 7)


@given(st.integers(1, 3000), st.integers(1, 9))
def test_shards_have_every_id_once(rows: int, shards: int) -> None:
    spread, ids = Spread(rows, shards), np.arange(rows)
    owners, places = spread.places(ids)
    found: list[Any] = []
    for shard in range(shards):
        mine = places[owners == shard]
        assert sorted(mine) == list(range(spread.held(shard)))
        assert np.array_equal(spread.ids(shard, mine), ids[owners == shard])
        found.extend(spread.ids(shard, mine))
    assert sorted(found) == ids.tolist()


@given(st.integers(10_000, MOST_ROWS), st.integers(2, 8), st.integers(1, 64), st.data())
def test_any_run_or_step_of_ids_is_spread_over_all_shards(
    rows: int, shards: int, step: int, data: st.DataObject
) -> None:
    count = min(4096, rows // step)
    first = data.draw(st.integers(0, rows - count * step))
    ids = first + np.arange(count) * step
    owners, places = Spread(rows, shards).places(ids)
    assert np.all((owners >= 0) & (owners < shards) & (places >= 0))
    pairs = zip(owners[:9].tolist(), places[:9, None], strict=True)
    back = [Spread(rows, shards).ids(owner, place) for owner, place in pairs]
    assert np.array_equal(np.concatenate(back), ids[:9])


def test_no_step_of_ids_meets_one_shard() -> None:
    for rows in (10_000_000, 2**24, 999_983):
        for step in (1, 2, 3, 4, 8, 64):
            owners, _ = Spread(rows, 4).places(np.arange(4096) * step)
            assert np.bincount(owners, minlength=4).min() > 512


def test_a_table_of_no_rows_or_too_many_is_refused() -> None:
    for rows in (0, MOST_ROWS + 1):
        with pytest.raises(ValueError, match="rows of a table"):
            Spread(rows, 2)


@pytest.mark.parametrize("start", [NORMAL, Start("uniform", -1, 3), Start("constant", 0.5)])
def test_first_values_are_those_of_the_id_whoever_asks(start: Start) -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 40, 20_000)
    whole = start.draw(5, ids, 4)
    assert np.array_equal(start.draw(5, ids[::-1][:10], 4), whole[::-1][:10])
    deviation = {"normal": start.b, "uniform": 4 / 12**0.5, "constant": 0.0}[start.kind]
    assert abs(whole.mean() - start.mean) <= 0.02 * deviation
    assert abs(whole.std() - deviation) <= 0.02 * deviation
    if deviation:
        assert not np.array_equal(start.draw(6, ids, 4), whole)
        assert abs(np.corrcoef(whole[:, 0], whole[:, 1])[0, 1]) < 0.03


def reference(name: str, table: torch.nn.Parameter) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.SparseAdam([table], lr=0.1, betas=(0.9, 0.99))
    kinds = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
    return kinds[name]([table], lr=0.1)


@settings(max_examples=40)
@given(
    st.sampled_from(["sgd", "adagrad", "adam", "rowwise_adagrad"]),
    st.integers(1, 4),
    st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=12), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_rows_learn_as_a_whole_table_of_torch(
    name: str, shards: int, batches: list[list[int]], seed: int
) -> None:
    dim = 1 if name == "rowwise_adagrad" else 3  # one number a row: its mean square is its square
    parts = [held(40, dim, shards, shard, name) for shard in range(shards)]
    table = torch.nn.Parameter(torch.from_numpy(NORMAL.draw(7, np.arange(40), dim)))
    optimizer = reference(name.removeprefix("rowwise_"), table)
    generator = np.random.default_rng(seed)
    for batch in batches:
        ids = np.array(batch)
        gradients = generator.normal(size=(len(ids), dim)).astype(np.float32)
        owners, places = Spread(40, shards).places(ids)
        for shard, part in enumerate(parts):
            part.update(*summed(places[owners == shard], gradients[owners == shard]), 0.1)
        index, values = torch.tensor(batch)[None], torch.from_numpy(gradients)
        grad = torch.sparse_coo_tensor(index, values, (40, dim), check_invariants=True)
        table.grad = grad.coalesce() if name == "adam" else grad.to_dense()
        optimizer.step()
    owners, places = Spread(40, shards).places(np.arange(40))
    for shard, part in enumerate(parts):
        mine = owners == shard
        expected = table.detach().numpy()[mine]
        np.testing.assert_allclose(part.read(places[mine]), expected, rtol=2e-5, atol=2e-6)


def test_row_wise_adagrad_divides_a_row_by_the_root_of_its_mean_squares() -> None:
    table, gradient = held(9, 2, name="rowwise_adagrad"), np.array([[3.0, 1.0]], np.float32)
    place = np.array([4])
    first = table.read(place)
    for step in (1, 2):
        table.update(place, gradient, 0.1)
        first = first - 0.1 * gradient / np.sqrt(step * 5.0)
        np.testing.assert_allclose(table.read(place), first, rtol=1e-5)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=1, max_size=30))
def test_gradients_of_one_row_are_added(pairs: list[tuple[int, int]]) -> None:
    places, values = np.array([p for p, _ in pairs]), np.array([v for _, v in pairs], np.float32)
    found, gradients = summed(places, values[:, None])
    expected = {int(p): float(values[places == p].sum()) for p in places}
    assert dict(zip(found.tolist(), gradients[:, 0].tolist(), strict=True)) == expected


def test_rows_come_to_exist_when_they_are_read_and_not_when_they_are_peeked_at() -> None:
    table = held(1_000_000_000)
    few = np.array([5, 999_999_999, 17])
    assert np.array_equal(table.peek(few), np.zeros((3, 3), np.float32))
    assert table.count == 0
    first = table.read(few)
    assert table.count == 3
    assert np.array_equal(table.peek(few), first)
    assert np.array_equal(table.read(few[::-1]), first[::-1])
    assert table.count == 3


def test_a_growing_table_loses_nothing() -> None:
    table = held(50_000, name="adagrad")
    places = np.random.default_rng(0).permutation(50_000)
    parts = np.array_split(places, 37)
    first = [table.read(part) for part in parts]
    assert all(np.array_equal(table.peek(p), f) for p, f in zip(parts, first, strict=True))
    kept = table.kept()
    other = held(50_000, name="adagrad")
    state = {"sum": np.asarray(kept["state/sum"], np.float32)}
    other.put(kept["ids"].astype(np.int64), np.asarray(kept["values"], np.float32), state)
    assert all(np.array_equal(other.peek(p), f) for p, f in zip(parts, first, strict=True))


def test_places_outside_a_shard_are_refused() -> None:
    table = HeldRows(TableShape("t", 10, 2, NORMAL), Spread(10, 2), 1, RowSGD(), 0)
    for place in (-1, 5):
        with pytest.raises(ValueError, match=r"ids of table 't'.*places below 5 of shard 1"):
            table.read(np.array([0, place]))
