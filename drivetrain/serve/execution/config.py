"""The configuration of a served version, as V2's model configuration extension gives it.

Source: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto in
its JSON form.
"""

from typing import Any

from drivetrain.core.bundle import GRAPH
from drivetrain.core.placement import GPUS
from drivetrain.core.schema import Field
from drivetrain.serve.execution.batching import Batching
from drivetrain.serve.execution.models import Model

_TYPES = {"BYTES": "TYPE_STRING"}


def model_config(model: Model, batching: Batching) -> dict[str, Any]:
    """What a version takes and gives, and how it is batched.

    The rows are the batch dimension, so ``dims`` are what a row holds; a column that is one value
    a row has dims of 1 that are reshaped away.
    """
    kind = "KIND_GPU" if model.placement in GPUS else "KIND_CPU"
    found: dict[str, Any] = {
        "name": model.name,
        "platform": f"{model.backend}_onnx",
        "backend": model.backend,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": batching.most_rows,
        "input": [{**_tensor(field), "optional": False} for field in model.inputs],
        "output": [_tensor(field) for field in model.bundle.manifest.outputs],
        "instance_group": [{"name": model.name, "kind": kind, "count": 1}],
        "default_model_filename": GRAPH,
        "parameters": {
            "digest": {"string_value": model.digest},
            "placement": {"string_value": model.placement},
        },
        "model_transaction_policy": {"decoupled": False},
    }
    if model.cost.pays and model.columns.stackable:
        found["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
        }
    return found


def _tensor(field: Field) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": field.name,
        "data_type": _TYPES.get(field.v2, f"TYPE_{field.v2}"),
        "dims": [-1 if n is None else n for n in field.shape] or [1],
    }
    return found if field.shape else {**found, "reshape": {"shape": []}}
