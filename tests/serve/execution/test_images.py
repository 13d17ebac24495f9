"""Images over the wire: base64 in rows, raw in binary tensors; a broken one fails alone."""

import base64
import io
import json
import struct
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from drivetrain.core import pixels
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.columns import UnfitError
from drivetrain.serve.execution.engine import Task
from drivetrain.serve.execution.models import Artefact, Model
from drivetrain.serve.execution.runs import compute
from drivetrain.serve.server import Server, running

GREYS = (0, 90, 255)


def image(grey, kind="PNG"):
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, kind)
    return file.getvalue()


def text(data):
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Gives the mean of an image's pixels, 0 to 1."""
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["photo.pixels"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers", "axes"], ["mean"], keepdims=0),
            helper.make_node("Div", ["mean", "white"], ["light"]),
        ],
        "light",
        [values("photo.pixels", TensorProto.UINT8, ["rows", 2, 2, 1])],
        [values("light", TensorProto.FLOAT, ["rows"])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
        ],
    )
    model = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    manifest = Manifest(
        name="light",
        inputs=Schema((Field("photo", "bytes"),)),
        outputs=Schema((Field("light", "float32"),)),
    )
    path = tmp_path_factory.mktemp("light") / "bundle"
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


@pytest.fixture(scope="module")
def ask(bundle):
    """Posts to a server of that bundle."""
    from http.client import HTTPConnection

    server = Server({"light": bundle.path}, port=0)
    with running(server):

        def post(target, body, headers=None):
            connection = HTTPConnection(server.host, server.port, timeout=10)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", target, data, headers or {})
            reply = connection.getresponse()
            found = reply.status, json.loads(reply.read())
            connection.close()
            return found

        yield post


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_rows_carry_images_as_base64_and_a_missing_one_is_black(ask, kind):
    rows = [{"photo": text(image(grey, kind))} for grey in GREYS]
    status, found = ask("/predict/light", {"rows": [*rows, {"photo": None}]})
    assert status == 200
    light = [row["light"] for row in found["predictions"]]
    assert np.allclose(light, [*(grey / 255 for grey in GREYS), 0], atol=1e-6)


def test_binary_tensors_carry_images_as_they_are(ask):
    data = b"".join(struct.pack("<I", len(p)) + p for p in map(image, GREYS))
    tensor = {"name": "photo", "datatype": "BYTES", "shape": [3]}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, found = ask("/v2/models/light/infer", head + data, headers)
    assert status == 200
    assert np.allclose(found["outputs"][0]["data"], [grey / 255 for grey in GREYS], atol=1e-6)


@pytest.mark.parametrize("value", ["%%%", "abc", 7, ["QUJD"]])
def test_what_is_no_base64_is_named(ask, value):
    status, found = ask("/predict/light", {"rows": [{"photo": None}, {"photo": value}]})
    assert status == 400
    assert "row 1, column 'photo': found" in found["error"]
    assert "base64 or null" in found["error"]


@pytest.mark.parametrize("data", [b"no image", image(90)[:-20], b"\x89PNG\r\n\x1a\n"])
def test_a_broken_image_is_its_senders_error(ask, data):
    status, found = ask("/predict/light", {"rows": [{"photo": None}, {"photo": text(data)}]})
    assert status == 400
    assert "row 1, column 'photo': found" in found["error"]
    assert "PNG" in found["error"]


def test_a_broken_image_fails_nobody_beside_it(ask):
    answers = []
    good, bad = {"photo": text(image(255))}, {"photo": text(b"broken")}

    def post(body):
        found = [ask("/predict/light", body)[0] for _ in range(10)]
        answers.extend((body is good, status) for status in found)

    threads = [threading.Thread(target=post, args=(body,)) for body in [good] * 4 + [bad] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 60
    assert all(status == (200 if is_good else 400) for is_good, status in answers)


class Noted(Task):
    """A task that keeps what became of it."""

    __slots__ = ("fate",)

    def done(self, inputs, outputs):
        self.fate = outputs[0].tolist()

    def failed(self, error):
        self.fate = error


def decoded(monkeypatch):
    """Counts the images that are decoded from now on."""
    seen = []
    decode = pixels._decode

    def counted(data, *size):
        seen.append(data)
        return decode(data, *size)

    monkeypatch.setattr(pixels, "_decode", counted)
    return seen


def test_a_batch_with_broken_images_is_decoded_and_run_once(bundle, monkeypatch):
    model = Model.load("light", Artefact(bundle.digest, bundle.path))
    runs, infer = [], model.infer
    monkeypatch.setattr(model, "infer", lambda feeds: runs.append(1) or infer(feeds))
    seen = decoded(monkeypatch)
    photos = ([image(0), image(255)], [image(90), b"broken"], [b"", image(255)], [b"?", b"!"])
    batch = [Noted(model, [np.array(of_one, object)], 2) for of_one in photos]
    outcomes = compute(model, batch).outcomes
    assert (len(runs), len(seen)) == (1, 7)
    assert [outcome[1][0].tolist() for outcome in (outcomes[0], outcomes[2])] == [[0, 1], [0, 1]]
    assert str(outcomes[1]).startswith("row 1, column 'photo': found b'broken', allowed: a whole")
    assert str(outcomes[3]).startswith("row 0, column 'photo': found b'?', allowed: a whole")
    assert {type(outcome) for outcome in (outcomes[1], outcomes[3])} == {UnfitError}


def test_nothing_is_run_for_broken_images_alone(bundle, monkeypatch):
    model = Model.load("light", Artefact(bundle.digest, bundle.path))
    monkeypatch.setattr(model, "infer", lambda feeds: pytest.fail("it was run"))
    for count in (1, 3):
        batch = [Noted(model, [np.array([b"?"], object)], 1) for _ in range(count)]
        outcomes = compute(model, batch).outcomes
        assert [type(outcome) for outcome in outcomes] == [UnfitError] * count


def test_what_decodes_images_is_never_run_on_the_loop(bundle):
    assert not Model.load("light", Artefact(bundle.digest, bundle.path)).cost.steady
