"""The messages of TensorFlow Serving's gRPC services, and of TensorFlow what they hold.

Sources: TensorFlow Serving's predict.proto, get_model_metadata.proto, get_model_status.proto and
model.proto; TensorFlow's tensor.proto, tensor_shape.proto, types.proto and meta_graph.proto.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from drivetrain.serve.protocols.messages import compile_messages

_TEXT = """
Int64Value: 1 value int64
Any: 1 type_url string, 2 value bytes

ModelSpec: 1 name string, 2 version Int64Value|choice, 4 version_label string|choice,
    3 signature_name string
Dim: 1 size int64, 2 name string
TensorShape: 2 dim *Dim, 3 unknown_rank bool
Tensor: 1 dtype int32, 2 tensor_shape TensorShape, 3 version_number int32, 4 tensor_content bytes,
    13 half_val *int32, 5 float_val *float, 6 double_val *double, 7 int_val *int32,
    8 string_val *bytes, 10 int64_val *int64, 11 bool_val *bool, 16 uint32_val *uint32,
    17 uint64_val *uint64

PredictRequest: 1 model_spec ModelSpec, 2 inputs {Tensor}, 3 output_filter *string
PredictResponse: 2 model_spec ModelSpec, 1 outputs {Tensor}

TensorInfo: 1 name string, 2 dtype int32, 3 tensor_shape TensorShape
SignatureDef: 1 inputs {TensorInfo}, 2 outputs {TensorInfo}, 3 method_name string
SignatureDefMap: 1 signature_def {SignatureDef}
GetModelMetadataRequest: 1 model_spec ModelSpec, 2 metadata_field *string
GetModelMetadataResponse: 1 model_spec ModelSpec, 2 metadata {Any}

Status: 1 error_code int32, 2 error_message string
ModelVersionStatus: 1 version int64, 2 state int32, 3 status Status
GetModelStatusRequest: 1 model_spec ModelSpec
GetModelStatusResponse: 1 model_version_status *ModelVersionStatus
"""


@cache
def messages() -> Mapping[str, Any]:
    """The classes by the names above.

    Raises:
        ImportError: protobuf is not installed.
    """
    return compile_messages("drivetrain.tfs", _TEXT)
