"""Images: decoded, resized, normalised; missing and broken ones."""

import io
from typing import Any

import numpy as np
import PIL.Image
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.features.compile import compile
from drivetrain.features.image import Image
from drivetrain.features.transform import Transform

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
ENCODED = Schema((Field("photo", "bytes"),))


def made(height: int, width: int, channels: int = 3) -> np.ndarray[Any, Any]:
    """A made picture: gradients and a little noise."""
    random = np.random.default_rng(height * width)
    ramp = np.linspace(0, 200, height * width * channels).reshape(height, width, channels)
    return (ramp + random.integers(0, 55, ramp.shape)).astype(np.uint8)


def encoded(picture: np.ndarray[Any, Any], kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(picture.squeeze()).save(file, kind)
    return file.getvalue()


def column(*values: bytes) -> Batch:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return Batch({"photo": array})


def run(feature: Image, schema: Schema, batch: Batch) -> np.ndarray[Any, Any]:
    graph, fields = compile([feature], schema, {})
    found = graph.session(1).run(batch)[feature.name]
    assert found.dtype == np.float32
    assert found.shape == (len(batch), *fields.field(feature.name).shape)
    assert np.isfinite(found).all()
    return found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("size", [(6, 8), (20, 30), (33, 17)])
def test_encoded_images_are_decoded_resized_and_normalised(
    kind: str, size: tuple[int, int]
) -> None:
    data = encoded(made(*size), kind)
    feature = Image("photo", 6, 8, mean=MEAN, std=STD)
    found = run(feature, ENCODED, column(data))[0]
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    picture = picture.resize((8, 6), PIL.Image.Resampling.BILINEAR)
    want = (np.asarray(picture, dtype=np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(found.transpose(1, 2, 0), want, atol=1e-5)


def test_images_of_different_sizes_formats_and_modes_share_a_batch() -> None:
    rgba = np.dstack([made(9, 9), made(9, 9, 1)])
    batch = column(
        encoded(made(3, 5), "PNG"), encoded(made(40, 31, 1), "JPEG"), b"", encoded(rgba, "PNG")
    )
    feature = Image("photo", 4, 4)
    together = run(feature, ENCODED, batch)
    for i in range(len(batch)):
        alone = run(feature, ENCODED, batch.slice(i, i + 1))
        assert alone.tobytes() == together[i : i + 1].tobytes()


def test_a_missing_image_is_zeros_and_a_black_one_is_not() -> None:
    black = encoded(np.zeros((4, 4, 3), dtype=np.uint8), "PNG")
    found = run(Image("photo", 4, 4, mean=(0.5,)), ENCODED, column(b"", black))
    assert (found[0] == 0).all()
    assert (found[1] == -0.5).all()


def test_grey_takes_one_channel() -> None:
    picture = made(4, 4, 1)
    found = run(Image("photo", 4, 4, channels=1), ENCODED, column(encoded(picture, "PNG")))
    np.testing.assert_allclose(found[0, 0] * 255, picture[:, :, 0], atol=1e-4)


WHOLE = encoded(made(24, 24), "JPEG")


@pytest.mark.parametrize(
    "broken",
    [
        b"no image at all",
        b"\0\0\1\0",
        WHOLE[:20],
        WHOLE[: len(WHOLE) // 2],
        b"\xff\xd8\xff\xe0 no more than a beginning",
        encoded(made(24, 24), "PNG")[:100],
    ],
    ids=["text", "zeros", "head", "half", "magic", "png"],
)
def test_a_broken_image_is_an_error_that_names_row_and_column(broken: bytes) -> None:
    session = compile([Image("photo", 4, 4)], ENCODED, {})[0].session(1)
    with pytest.raises(ValueError, match=r"row 1, column 'photo'.*PNG"):
        session.run(column(WHOLE, broken))


def test_an_image_too_large_to_hold_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain.core.pixels.MOST", 100)
    session = compile([Image("photo", 4, 4)], ENCODED, {})[0].session(1)
    with pytest.raises(ValueError, match="24 × 24 pixels"):
        session.run(column(WHOLE))


def test_no_rows_give_no_images() -> None:
    assert run(Image("photo", 4, 5), ENCODED, column()).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("size", [(6, 8), (12, 16), (9, 31), (3, 4)])
def test_pixel_columns_are_resized_as_pillow_does(dtype: Any, size: tuple[int, int]) -> None:
    picture = made(*size)
    schema = Schema((Field("photo", dtype, (*size, 3)),))
    batch = Batch({"photo": np.stack([picture, 255 - picture]).astype(dtype)})
    found = run(Image("photo", 6, 8, mean=MEAN, std=STD), schema, batch)
    pixels = (found[0].transpose(1, 2, 0) * STD + MEAN) * 255
    for channel in range(3):
        plane = PIL.Image.fromarray(picture[:, :, channel].astype(np.float32))
        want = np.asarray(plane.resize((8, 6), PIL.Image.Resampling.BILINEAR))
        np.testing.assert_allclose(pixels[:, :, channel], want, atol=1e-3)
    alone = run(Image("photo", 6, 8, mean=MEAN, std=STD), schema, batch.slice(1, 2))
    assert alone.tobytes() == found[1:].tobytes()


def test_missing_pixels_are_black_and_a_row_without_pixels_is_zeros() -> None:
    schema = Schema((Field("photo", "float32", (2, 2)), Field("codes", "int64", (2, 2))))
    photo = np.array([[[np.nan, 255], [np.inf, 300]], [[np.nan, np.nan]] * 2], dtype=np.float32)
    codes = np.array([[[MISSING_INT, 255], [0, -9]], [[MISSING_INT] * 2] * 2])
    batch = Batch({"photo": photo, "codes": codes})
    found = run(Image("photo", 2, 2, channels=1, mean=(0.5,)), schema, batch)
    np.testing.assert_allclose(found[0, 0], [[-0.5, 0.5], [-0.5, 0.5]], atol=1e-6)
    assert (found[1] == 0).all()
    found = run(Image("codes", 2, 2, channels=1, mean=(0.5,)), schema, batch)
    np.testing.assert_allclose(found[0, 0], [[-0.5, 0.5], [-0.5, -0.5]], atol=1e-6)
    assert (found[1] == 0).all()


def test_the_transform_takes_images_as_the_graph_does() -> None:
    graph, fields = compile([Image("photo", 4, 4)], ENCODED, {})
    batch = column(WHOLE, b"", WHOLE)
    found = Transform(graph, fields, threads=1).run(batch)
    assert found["photo_image"].tobytes() == graph.run(batch)["photo_image"].tobytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"height": 0}, "height: found 0"),
        ({"channels": 2}, "channels: found 2"),
        ({"mean": (0.1, 0.2)}, "mean"),
        ({"std": (0.0,)}, "std"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Image("photo", **{"height": 4, "width": 4, **options})


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (4, 4, 1), (4, 4, 3, 3)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    schema = Schema((Field("photo", "int64", shape),))
    with pytest.raises(ValueError, match=r"\(height, width, 3\)"):
        compile([Image("photo", 4, 4)], schema, {})


def test_one_column_is_decoded_in_one_size() -> None:
    both = [Image("photo", 4, 4), Image("photo", 5, 5, name="larger")]
    with pytest.raises(ValueError, match="other sizes"):
        compile(both, ENCODED, {})
