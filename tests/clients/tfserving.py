"""What tensorflow-serving-api offers, asked of a server; prints what it got as JSON.

Run by the Python of the client's own environment: ``python tfserving.py ADDRESS``.
"""

import json
import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

ROWS = {
    "carrier": ["AA", "β", ""],
    "distance": np.array([733.5, np.nan, 0.1], np.float32),
    "hour": np.array([7, 23, -(2**63)], np.int64),
}


def predict(stub, rows=ROWS, model="tiny", **spec):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    filter_ = spec.pop("output_filter", ())
    for name, value in spec.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    for name, values in rows.items():
        tensor = values if isinstance(values, tf.make_tensor_proto([0]).__class__) else None
        request.inputs[name].CopyFrom(tensor or tf.make_tensor_proto(values))
    request.output_filter.extend(filter_)
    return stub.Predict(request, timeout=10)


def outputs_of(response):
    return {name: tf.make_ndarray(t).tolist() for name, t in response.outputs.items()}


def refused(ask):
    try:
        ask()
    except grpc.RpcError as error:
        return {"status": error.code().name, "message": error.details()}
    return None


def typed(dtype, values, **fields):
    """A TensorProto whose values lie in the repeated field of their type."""
    tensor = tf.make_tensor_proto(values, dtype, shape=fields.pop("shape", None))
    tensor.tensor_content = b""
    for name, given in fields.items():
        getattr(tensor, name)[:] = given
    return tensor


def forms(stub):
    """The same rows in every form that a TensorProto has."""
    plain = {
        "carrier": ["AA", "AA", "AA"],
        "distance": np.full(3, 0.5, np.float32),
        "hour": np.full(3, 7, np.int64),
    }
    columns = {name: np.array(values).reshape(3, 1) for name, values in plain.items()}
    columns["carrier"] = [["AA"]] * 3
    repeated = {
        "carrier": typed(tf.string, ["AA"] * 3, string_val=[b"AA"]),
        "distance": typed(tf.float32, [0.5] * 3, float_val=[0.5]),
        "hour": typed(tf.int64, [7] * 3, int64_val=[7]),
    }
    whole = {
        **plain,
        "distance": typed(tf.float32, [0.5] * 3, float_val=[0.5] * 3),
        "hour": typed(tf.int64, [7] * 3, int64_val=[7] * 3),
    }
    wide = {**plain, "hour": np.full(3, 7, np.int32), "distance": np.full(3, 0.5, np.float16)}
    found = {"plain": plain, "columns": columns, "repeated": repeated, "typed": whole, "wide": wide}
    return {name: outputs_of(predict(stub, rows)) for name, rows in found.items()}


def mistakes(stub, models):
    double = {**ROWS, "distance": np.zeros(3)}
    few = {**ROWS, "distance": typed(tf.float32, [0.0] * 3, float_val=[])}
    short = {**ROWS, "hour": np.array([7, 8], np.int64)}
    asked = classification_pb2.ClassificationRequest()
    metadata = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata.model_spec.name = "tiny"
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "tinny"
    return {
        "model": refused(lambda: predict(stub, model="tinny")),
        "version": refused(lambda: predict(stub, version=7)),
        "label": refused(lambda: predict(stub, version_label="stable")),
        "signature": refused(lambda: predict(stub, signature_name="train")),
        "output": refused(lambda: predict(stub, output_filter=["lat"])),
        "dtype": refused(lambda: predict(stub, double)),
        "values": refused(lambda: predict(stub, few)),
        "rows": refused(lambda: predict(stub, short)),
        "absent": refused(lambda: predict(stub, {"carrier": ["AA"]})),
        "unknown": refused(lambda: predict(stub, {**ROWS, "our": [1]})),
        "scalar": refused(lambda: predict(stub, {**ROWS, "hour": np.int64(7)})),
        "classify": refused(lambda: stub.Classify(asked)),
        "metadata": refused(lambda: stub.GetModelMetadata(metadata)),
        "status": refused(lambda: models.GetModelStatus(status)),
    }


def metadata(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "tiny"
    request.metadata_field.append("signature_def")
    response = stub.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]

    def described(infos):
        return {
            name: [tf.dtypes.as_dtype(info.dtype).name, [d.size for d in info.tensor_shape.dim]]
            for name, info in infos.items()
        }

    return {
        "version": response.model_spec.version.value,
        "method": signature.method_name,
        "inputs": described(signature.inputs),
        "outputs": described(signature.outputs),
    }


def main(address):
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        first = predict(stub)
        spec = first.model_spec
        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = "tiny"
        (version,) = models.GetModelStatus(status).model_version_status
        return {
            "predict": outputs_of(first),
            "float_val": list(first.outputs["late"].float_val),
            "spec": [spec.name, spec.version.value, spec.signature_name],
            "by_version": outputs_of(predict(stub, version=spec.version.value)),
            "by_label": outputs_of(predict(stub, version_label=f"{spec.version.value:012x}")),
            "filtered": outputs_of(predict(stub, output_filter=["slot"])),
            "forms": forms(stub),
            "mistakes": mistakes(stub, models),
            "metadata": metadata(stub),
            "status": [version.version, version.state, version.status.error_code],
        }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
