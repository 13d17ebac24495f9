"""Fields, schemas and what features give a model."""

import json

import pytest

from drivetrain.core.schema import ONNX_TYPE, V2_TYPE, FeatureField, FeatureSchema, Field, Schema

SCHEMA = Schema((Field("a", "string"), Field("b", "timestamp"), Field("c", "float32", (3, None))))
FEATURES = FeatureSchema(
    (
        FeatureField(name="delay", kind="dense", columns=("delay",)),
        FeatureField(name="carrier", kind="index", cardinality=17, columns=("carrier",)),
        FeatureField(name="hour", kind="dense", width=2),
        FeatureField(name="route", kind="index", width=2, cardinality=50),
        FeatureField(name="title", kind="bag", width=8, cardinality=1000),
        FeatureField(name="photo", kind="tensor", shape=(3, 8, 8)),
    )
)


def test_a_schema_survives_json():
    assert Schema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA
    assert FeatureSchema.from_json(json.loads(json.dumps(FEATURES.to_json()))) == FEATURES


def test_a_dtype_is_checked_and_the_nearest_is_suggested():
    with pytest.raises(ValueError, match=r"unknown dtype 'flot32' in field 'x'.*'float32'"):
        Field("x", "flot32")  # type: ignore[arg-type]


def test_a_name_is_there_once():
    with pytest.raises(ValueError, match="found twice: a"):
        Schema((Field("a", "string"), Field("a", "int64")))


def test_fields_are_found_by_name_and_the_nearest_is_suggested():
    assert SCHEMA.field("b").dtype == "timestamp"
    assert SCHEMA.select(["c", "a"]).names == ("c", "a")
    assert ("a" in SCHEMA, "z" in SCHEMA, len(SCHEMA)) == (True, False, 3)
    with pytest.raises(ValueError, match=r"unknown column 'aa' in targets.*Allowed: a, b, c"):
        SCHEMA.field("aa", "targets")


def test_every_dtype_has_a_name_in_the_protocol():
    assert set(V2_TYPE) == set(ONNX_TYPE) | {"bytes"}
    assert (Field("x", "timestamp").v2, Field("x", "timestamp").numpy) == ("INT64", "int64")
    assert (Field("x", "bytes").v2, Field("x", "string").numpy) == ("BYTES", "object")
    assert Field("x", "float16").onnx == 10


def test_blocks_are_laid_out_in_order_of_kind():
    assert FEATURES.dense_width == 3
    assert FEATURES.cardinalities == (17, 50, 50)
    assert FEATURES.slice("hour") == slice(1, 3)
    assert FEATURES.slice("route") == slice(1, 3)
    assert [(f.name, f.dtype, f.shape) for f in FEATURES.tensors] == [
        ("dense", "float32", (3,)),
        ("index", "int64", (3,)),
        ("title", "int64", (8,)),
        ("photo", "float32", (3, 8, 8)),
    ]
    with pytest.raises(ValueError, match=r"unknown feature 'hours'.*Did you mean 'hour'"):
        FEATURES.field("hours")


def test_blocks_that_nothing_fills_are_not_there():
    assert FeatureSchema(()).tensors.names == ()
    assert FeatureSchema(FEATURES.of("tensor")).tensors.names == ("photo",)
