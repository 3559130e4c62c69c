# The part of onnx 1.23 that the benchmarks and the tests use.

from onnx import helper as helper
from onnx import numpy_helper as numpy_helper

class AttributeProto: ...

class NodeProto:
    attribute: list[AttributeProto]

class OperatorSetIdProto: ...
class ValueInfoProto: ...
class GraphProto: ...

class TensorProto:
    FLOAT: int
    INT64: int

class ModelProto:
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - its own name
