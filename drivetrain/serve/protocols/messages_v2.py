"""The messages of the Open Inference Protocol V2 over gRPC, with Triton's extensions.

Sources: https://github.com/open-inference/open-inference-protocol (grpc_predict_v2.proto) and
Triton's grpc_service.proto and model_config.proto, of which this holds what is served; and
https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from drivetrain.serve.protocols.messages import compile_messages

_TEXT = """
Empty:
Live: 1 live bool
Ready: 1 ready bool
ModelName: 1 name string, 2 version string
ServerMetadata: 1 name string, 2 version string, 3 extensions *string
ModelMetadata: 1 name string, 2 versions *string, 3 platform string, 4 inputs *TensorMetadata,
    5 outputs *TensorMetadata
TensorMetadata: 1 name string, 2 datatype string, 3 shape *int64

InferParameter: 1 bool_param bool|choice, 2 int64_param int64|choice, 3 string_param string|choice,
    4 double_param double|choice, 5 uint64_param uint64|choice
InferTensorContents: 1 bool_contents *bool, 2 int_contents *int32, 3 int64_contents *int64,
    4 uint_contents *uint32, 5 uint64_contents *uint64, 6 fp32_contents *float,
    7 fp64_contents *double, 8 bytes_contents *bytes
InferTensor: 1 name string, 2 datatype string, 3 shape *int64, 4 parameters {InferParameter},
    5 contents InferTensorContents
RequestedOutput: 1 name string, 2 parameters {InferParameter}
ModelInferRequest: 1 model_name string, 2 model_version string, 3 id string,
    4 parameters {InferParameter}, 5 inputs *InferTensor, 6 outputs *RequestedOutput,
    7 raw_input_contents *bytes
ModelInferResponse: 1 model_name string, 2 model_version string, 3 id string,
    4 parameters {InferParameter}, 5 outputs *InferTensor, 6 raw_output_contents *bytes
ModelStreamInferResponse: 1 error_message string, 2 infer_response ModelInferResponse

ModelConfigResponse: 1 config ModelConfig
ModelConfig: 1 name string, 2 platform string, 17 backend string, 3 version_policy VersionPolicy,
    4 max_batch_size int32, 5 input *ConfigInput, 6 output *ConfigOutput,
    7 instance_group *InstanceGroup, 8 default_model_filename string,
    11 dynamic_batching DynamicBatching, 14 parameters {ConfigParameter},
    19 model_transaction_policy TransactionPolicy
DataType = TYPE_INVALID 0, TYPE_BOOL 1, TYPE_UINT8 2, TYPE_UINT16 3, TYPE_UINT32 4, TYPE_UINT64 5,
    TYPE_INT8 6, TYPE_INT16 7, TYPE_INT32 8, TYPE_INT64 9, TYPE_FP16 10, TYPE_FP32 11,
    TYPE_FP64 12, TYPE_STRING 13, TYPE_BF16 14
Kind = KIND_AUTO 0, KIND_GPU 1, KIND_CPU 2, KIND_MODEL 3
Reshape: 1 shape *int64
VersionPolicy: 1 latest LatestVersions|choice, 2 all Empty|choice, 3 specific SomeVersions|choice
LatestVersions: 1 num_versions uint32
SomeVersions: 1 versions *int64
ConfigInput: 1 name string, 2 data_type DataType, 4 dims *int64, 5 reshape Reshape, 8 optional bool
ConfigOutput: 1 name string, 2 data_type DataType, 3 dims *int64, 5 reshape Reshape
InstanceGroup: 1 name string, 4 kind Kind, 2 count int32
DynamicBatching: 1 preferred_batch_size *int32, 2 max_queue_delay_microseconds uint64,
    3 preserve_ordering bool
ConfigParameter: 1 string_value string
TransactionPolicy: 1 decoupled bool

StatisticDuration: 1 count uint64, 2 ns uint64
InferStatistics: 1 success StatisticDuration, 2 fail StatisticDuration, 3 queue StatisticDuration,
    4 compute_input StatisticDuration, 5 compute_infer StatisticDuration,
    6 compute_output StatisticDuration, 7 cache_hit StatisticDuration,
    8 cache_miss StatisticDuration
BatchStatistics: 1 batch_size uint64, 2 compute_input StatisticDuration,
    3 compute_infer StatisticDuration, 4 compute_output StatisticDuration
ModelStatistics: 1 name string, 2 version string, 3 last_inference uint64, 4 inference_count uint64,
    5 execution_count uint64, 6 inference_stats InferStatistics, 7 batch_stats *BatchStatistics
ModelStatisticsResponse: 1 model_stats *ModelStatistics

RepositoryParameter: 1 bool_param bool|choice, 2 int64_param int64|choice,
    3 string_param string|choice, 4 bytes_param bytes|choice
RepositoryIndexRequest: 1 repository_name string, 2 ready bool
RepositoryIndexResponse: 1 models *ModelIndex
ModelIndex: 1 name string, 2 version string, 3 state string, 4 reason string
RepositoryModelRequest: 1 repository_name string, 2 model_name string,
    3 parameters {RepositoryParameter}

RegionName: 1 name string
RegionRequest: 1 name string, 2 key string, 3 offset uint64, 4 byte_size uint64
RegionsResponse: 1 regions {RegionRequest}

HealthRequest: 1 service string
Serving = UNKNOWN 0, SERVING 1, NOT_SERVING 2, SERVICE_UNKNOWN 3
HealthResponse: 1 status Serving
"""


@cache
def messages() -> Mapping[str, Any]:
    """The classes by the names above.

    Raises:
        ImportError: protobuf is not installed.
    """
    return compile_messages("drivetrain.v2", _TEXT)
