"""Noise beside plain integer arithmetic, and that it looks like noise."""

from typing import Any

import numpy as np

from drivetrain.core.batch import BYTES_SUFFIX, Batch
from drivetrain.core.polynomial import BASE
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.train.recall.nodes import Nodes
from drivetrain.train.rerank.noise import gumbel, seeds, uniform

MASK = 2**64 - 1
RAW = Schema((Field("name", "string"), Field("at", "timestamp")))


def mixed(bits: int) -> int:
    """MurmurHash3's 64-bit finaliser."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ bits >> 33) * factor & MASK
    return bits ^ bits >> 33


def seed_of(name: str, at: int) -> int:
    text = sum(byte * pow(BASE, i + 1, 2**64) for i, byte in enumerate(name.encode()[:256])) & MASK
    first = mixed(mixed(text))
    return mixed((first * BASE + mixed(at & MASK)) & MASK)


def made(names: list[str], moments: list[int], places: Any) -> Batch:
    """What the nodes give for some requests and items."""
    n = Nodes()
    seed, known = seeds(n, ("name", "at"), RAW)
    drawn = uniform(n, seed, "places")
    wide = np.asarray(places).shape[1]
    fields = [Field("name" + BYTES_SUFFIX, "uint8", (None,)), RAW.field("at")]
    graph = n.build(
        [*fields, Field("places", "int64", (wide,))],
        [
            (Field("seed", "uint64", (1,)), seed),
            (Field("known", "bool", (1,)), known),
            (Field("uniform", "float64", (wide,)), drawn),
            (Field("gumbel", "float64", (wide,)), gumbel(n, drawn)),
        ],
    )
    session = graph.session(threads=1)
    shapes = dict(session.inputs)
    assert shapes["name.utf8"][-1] == "name_bytes_max_256", "no longer text is copied for a batch"
    columns = {"name": np.array(names, object), "at": np.array(moments), "places": np.array(places)}
    return session.run(Batch(columns))


def test_a_seed_is_the_same_everywhere() -> None:
    names = ["a", "b", "", "Straße", "x" * 300, "x" * 256 + "y", "数据"]
    moments = [0, -1, 5, 2**62, 7, 7, MISSING_INT]
    found = made(names, moments, [[0]] * 7)
    due = [seed_of(name, at) for name, at in zip(names, moments, strict=True)]
    assert found["seed"][:, 0].tolist() == due
    assert found["seed"][4] == found["seed"][5]
    assert found["known"][:, 0].tolist() == [True, True, False, True, True, True, False]


def test_noise_is_the_hash_of_seed_and_item_between_0_and_1() -> None:
    places = [[0, 1, 2**40, 5]] * 2
    found = made(["a", "b"], [1, 2], places)
    for row, (name, at) in enumerate((("a", 1), ("b", 2))):
        hashed = [mixed((seed_of(name, at) + place * BASE) & MASK) for place in places[row]]
        assert found["uniform"][row].tolist() == [
            ((bits >> 12) + 0.5) * 2.0**-52 for bits in hashed
        ]
    np.testing.assert_allclose(found["gumbel"], -np.log(-np.log(found["uniform"])), rtol=1e-13)


def test_noise_looks_like_noise() -> None:
    """40,000 numbers of names and moments that count up: even, and alike in no direction."""
    rows, wide = 2000, 20
    names = [f"request {i}" for i in range(rows)]
    found = made(names, [*range(rows)], np.tile(np.arange(wide), (rows, 1)))["uniform"]
    counts = np.bincount((found * 64).astype(int).ravel(), minlength=64)
    expected = rows * wide / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # 63 degrees of freedom
    even = found - 0.5
    for near in (even[1:] * even[:-1], even[:, 1:] * even[:, :-1], even[1:, 1:] * even[:-1, :-1]):
        assert abs(near.mean()) < 5 * near.std() / np.sqrt(near.size)
    extreme = gumbel_of(np.array([2.0**-53, 1 - 2.0**-53]))
    assert np.isfinite(extreme).all()


def gumbel_of(values: Any) -> Any:
    n = Nodes()
    noise = gumbel(n, "values")
    graph = n.build([Field("values", "float64")], [(Field("noise", "float64"), noise)])
    return graph.session(threads=1).run(Batch({"values": values}))["noise"]
