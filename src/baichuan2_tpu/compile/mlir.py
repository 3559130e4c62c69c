"""The text of one net in the compiler's Top dialect, an operation at a time.

One small typed function per operation: it takes values, knows the shape of its result, and appends one line.
Every computed float is written as ``f32`` here; the compiler's mode decides in which type it computes.
Weights of 16 bits must be of the mode's own type.
Not here: which operations make a model (``nets``), running the compiler.
Source: ``TopOps.td`` and ``llm/LlmConverter.py`` of tpu_mlir 1.30.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Element", "Graph", "Shape", "Value"]

Element = Literal["f32", "f16", "bf16", "si32", "ui8"]
Shape = tuple[int, ...]

_ARITHMETIC = {"do_relu": "false", "is_scalar": "false", "relu_limit": "-1.000000e+00 : f64"}


@dataclass(frozen=True, slots=True)
class Value:
    """The result of one operation: its reference in the text and its type."""

    reference: str
    shape: Shape
    element: Element = "f32"

    @property
    def type(self) -> str:
        """The type as MLIR writes it."""
        return _tensor(self.shape, self.element)


class Graph:
    """One net under construction; ``text`` closes it.

    ``weight_file`` is where the compiler will look for the weights, from the folder it runs in. The name of
    an operation is the name of the tensor that it makes and must be unique; those of inputs and outputs can
    be read from the compiled net.
    """

    def __init__(self, name: str, weight_file: str) -> None:
        self._name = name
        self._weight_file = weight_file
        self._arguments: list[Value] = []
        self._lines = ['    %0 = "top.None"() : () -> none loc(unknown)']
        self._locations: list[str] = []

    def input(self, name: str, shape: Shape, element: Element = "f32") -> Value:
        """Add the next input of the net."""
        argument = Value(f"%arg{len(self._arguments)}", shape, element)
        self._arguments.append(argument)
        return self._operation("Input", name, [argument], shape, {"do_preprocess": "false"})

    def weight(self, name: str, shape: Shape, element: Element = "f32") -> Value:
        """Read the array ``name`` of the weight file."""
        reference = self._next_reference()
        self._append(name, f'{reference} = "top.Weight"() : () -> {_tensor(shape, element)}')
        return Value(reference, shape, element)

    def rms_norm(self, name: str, values: Value, weight: Value, eps: float) -> Value:
        """Divide every row by its root mean square and multiply with ``weight``, whose rank is the same."""
        attributes = {"eps": _float(eps), "weight_keep_f32": "false"}
        return self._operation("RMSNorm", name, [values, weight], values.shape, attributes)

    def packed_matmul(self, name: str, values: Value, packed: Sequence[Value], bits: int) -> Value:
        """Multiply with packed integers: ``packed`` is (integers, scales, zeros).

        Shapes: values (…, K), integers (N, K * bits / 8), scales and zeros (N, K / group) → (…, N).
        """
        integers, scales, _ = packed
        group = integers.shape[1] * 8 // bits // scales.shape[1]
        attributes = {
            "dq_type": '"NONE"',
            "q_group_size": f"{group} : i64",
            "right_transpose": "true",
            "weight_bits": f"{bits} : i64",
        }
        shape = (*values.shape[:-1], integers.shape[0])
        return self._operation("A16MatMul", name, [values, *packed, None], shape, attributes)

    def matmul(self, name: str, values: Value, right: Value) -> Value:
        """Multiply two tensors of floats. Shapes: (…, M, K), (…, K, N) → (…, M, N)."""
        return self._operation("MatMul", name, [values, right, None], (*values.shape[:-1], right.shape[-1]))

    def add(self, name: str, left: Value, right: Value) -> Value:
        """Add two tensors; axes of one are repeated."""
        return self._operation("Add", name, [left, right], _joint_shape(left, right), _ARITHMETIC)

    def multiply(self, name: str, left: Value, right: Value) -> Value:
        """Multiply two tensors element by element; axes of one are repeated."""
        return self._operation("Mul", name, [left, right], _joint_shape(left, right), _ARITHMETIC)

    def subtract(self, name: str, left: Value, right: Value) -> Value:
        """Subtract ``right`` from ``left``; axes of one are repeated."""
        attributes = {**_ARITHMETIC, "is_reverse": "false"}
        return self._operation("Sub", name, [left, right], _joint_shape(left, right), attributes)

    def scale(self, name: str, values: Value, factor: float) -> Value:
        """Multiply every element with one number."""
        attributes = {**_ARITHMETIC, "const_val": _float(factor)}
        return self._operation("MulConst", name, [values], values.shape, attributes)

    def softmax(self, name: str, values: Value) -> Value:
        """Apply softmax along the last axis."""
        axis = len(values.shape) - 1
        return self._operation("Softmax", name, [values], values.shape, {"axis": f"{axis} : si32"})

    def permute(self, name: str, values: Value, order: Shape) -> Value:
        """Reorder the axes."""
        shape = tuple(values.shape[axis] for axis in order)
        attributes = {"order": f"[{', '.join(str(axis) for axis in order)}]"}
        return self._operation("Permute", name, [values], shape, attributes)

    def silu(self, name: str, values: Value) -> Value:
        """Multiply every element with its sigmoid."""
        return self._operation("SiLU", name, [values], values.shape)

    def reshape(self, name: str, values: Value, shape: Shape) -> Value:
        """Give the same elements another shape."""
        assert math.prod(shape) == math.prod(values.shape), (values.shape, shape)  # noqa: S101 - our own invariant
        return self._operation("Reshape", name, [values], shape, {"flatten_start_dim": "-1 : i64"})

    def concatenate(
        self, name: str, parts: Sequence[Value], axis: int, *, is_in_place: bool = False
    ) -> Value:
        """Put tensors behind each other along one axis; in place, every part is computed where it belongs."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        attributes = {
            "axis": f"{axis} : si32",
            "do_relu": "false",
            "only_merge": "true" if is_in_place else "false",
            "relu_limit": "-1.000000e+00 : f64",
            "round_mode": '"HalfAwayFromZero"',
        }
        return self._operation("Concat", name, parts, tuple(shape), attributes)

    def gather(self, name: str, table: Value, indices: Value) -> Value:
        """Take the rows ``indices`` of a table. Shapes: (R, …), (A, B) → (A, B, …)."""
        attributes = {"axis": "0 : si32", "is_lora": "false", "is_scalar": "false", "keepdims": "true"}
        shape = (*indices.shape, *table.shape[1:])
        return self._operation("Gather", name, [table, indices], shape, attributes)

    def rotate(self, name: str, values: Value, sines: Value, cosines: Value) -> Value:
        """Apply RoPE, first half of a head against its second half."""
        attributes = {"rope_mode": '"contiguous_halves"'}
        return self._operation("Rope", name, [values, sines, cosines], values.shape, attributes)

    def attention(self, name: str, queries: Value, keys: Value, values: Value, mask: Value) -> Value:
        """Attend with one mask for all heads.

        Shapes: queries (1, T, H, D), keys and values (1, M, KV, D), mask (1, 1, T, M) → (1, T, H * D).
        """
        _, tokens, heads, size = queries.shape
        attributes = {
            "batch": "1 : i64",
            "dim": f"{size} : i64",
            "keep_dims": "false",
            "kv_head": f"{keys.shape[2]} : i64",
            "mask_size": "0 : si32",
            "mk": f"{keys.shape[1]} : i64",
            "mq": f"{tokens} : i64",
            "q_head": f"{heads} : i64",
            "scale": _float(size**-0.5),
        }
        operands = [queries, keys, values, mask, None]
        return self._operation("FAttention", name, operands, (1, tokens, heads * size), attributes)

    def top(self, names: tuple[str, str], values: Value, count: int) -> tuple[Value, Value]:
        """Return the ``count`` largest elements of every row, falling, and their columns.

        Shapes: (R, V) → (R, count) and (R, count).
        """
        shape = (values.shape[0], count)
        reference, result = self._next_reference(), _tensor(shape)
        attributes = _attributes({"K": f"{count} : i64", "axis": "1 : i64"})
        both = self._define(f"fused[{', '.join(self._location(name) for name in names)}]")
        self._lines.append(
            f'    {reference}:2 = "top.TopK"({values.reference}){attributes} : ({values.type}) -> '
            f"({result}, {result}) loc({both})"
        )
        return Value(f"{reference}#0", shape), Value(f"{reference}#1", shape)

    def text(self, outputs: Sequence[Value]) -> str:
        """Return the whole module, which gives ``outputs``."""
        arguments = ", ".join(f"{value.reference}: {value.type} loc(unknown)" for value in self._arguments)
        results = ", ".join(value.type for value in outputs)
        module = _attributes(
            {
                "module.chip": '"ALL"',
                "module.platform": '"LLM_QUANTIZED"',
                "module.state": '"TOP_F32"',
                "module.top_run_mode": '"STATIC"',
                "module.weight_file": f'"{self._weight_file}"',
            }
        )
        returned = ", ".join(value.reference for value in outputs)
        lines = [
            f"module @{self._name} attributes{module} {{",
            f"  func.func @main({arguments}) -> ({results}) {{",
            *self._lines,
            f"    return {returned} : {results} loc(unknown)",
            "  } loc(unknown)",
            "} loc(unknown)",
            *(f"#loc{index} = loc({place})" for index, place in enumerate(self._locations, 1)),
        ]
        return "\n".join(lines) + "\n"

    def _operation(
        self,
        kind: str,
        name: str,
        operands: Sequence[Value | None],
        shape: Shape,
        attributes: dict[str, str] | None = None,
    ) -> Value:
        """Append one operation with one result; a None operand is an optional one that is left out."""
        result = Value(self._next_reference(), shape)
        given = ", ".join("%0" if value is None else value.reference for value in operands)
        types = ", ".join("none" if value is None else value.type for value in operands)
        operation = f'"top.{kind}"({given}){_attributes(attributes or {})}'
        self._append(name, f"{result.reference} = {operation} : ({types}) -> {result.type}")
        return result

    def _append(self, name: str, line: str) -> None:
        self._lines.append(f"    {line} loc({self._location(name)})")

    def _location(self, name: str) -> str:
        quoted = f'"{name}"'
        assert quoted not in self._locations, name  # noqa: S101 - our own invariant
        return self._define(quoted)

    def _define(self, location: str) -> str:
        self._locations.append(location)
        return f"#loc{len(self._locations)}"

    def _next_reference(self) -> str:
        return f"%{len(self._lines)}"


def _tensor(shape: Shape, element: Element = "f32") -> str:
    return f"tensor<{'x'.join(str(size) for size in shape)}x{element}>"


def _attributes(values: dict[str, str]) -> str:
    inside = ", ".join(f"{name} = {value}" for name, value in values.items())
    return f" {{{inside}}}" if inside else ""


def _float(value: float) -> str:
    """Write a float as MLIR reads it: with a point in every mantissa."""
    mantissa, letter, exponent = repr(value).partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{letter}{exponent} : f64"


def _joint_shape(left: Value, right: Value) -> Shape:
    return tuple(max(pair) for pair in zip(left.shape, right.shape, strict=True))
