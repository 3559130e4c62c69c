# The part of onnx 1.23 that the benchmarks use.

from onnx import helper as helper
from onnx import numpy_helper as numpy_helper

class NodeProto: ...
class OperatorSetIdProto: ...
class ValueInfoProto: ...
class GraphProto: ...

class TensorProto:
    FLOAT: int

class ModelProto:
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - its own name
