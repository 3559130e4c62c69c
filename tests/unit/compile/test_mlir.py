"""The text of small graphs, exactly."""

import pytest

from baichuan2_tpu.compile.mlir import Graph, Value


def test_a_module_has_arguments_operations_results_and_locations() -> None:
    graph = Graph("tiny", "../weights.npz")
    left = graph.input("left", (1, 4))
    right = graph.weight("right", (1, 4))
    assert graph.text([graph.add("sum", left, right)]) == (
        'module @tiny attributes {module.chip = "ALL", module.platform = "LLM_QUANTIZED", '
        'module.state = "TOP_F32", module.top_run_mode = "STATIC", module.weight_file = "../weights.npz"} {\n'
        "  func.func @main(%arg0: tensor<1x4xf32> loc(unknown)) -> (tensor<1x4xf32>) {\n"
        '    %0 = "top.None"() : () -> none loc(unknown)\n'
        '    %1 = "top.Input"(%arg0) {do_preprocess = false} : (tensor<1x4xf32>) -> tensor<1x4xf32> '
        "loc(#loc1)\n"
        '    %2 = "top.Weight"() : () -> tensor<1x4xf32> loc(#loc2)\n'
        '    %3 = "top.Add"(%1, %2) {do_relu = false, is_scalar = false, relu_limit = -1.000000e+00 : f64} : '
        "(tensor<1x4xf32>, tensor<1x4xf32>) -> tensor<1x4xf32> loc(#loc3)\n"
        "    return %3 : tensor<1x4xf32> loc(unknown)\n"
        "  } loc(unknown)\n"
        "} loc(unknown)\n"
        '#loc1 = loc("left")\n'
        '#loc2 = loc("right")\n'
        '#loc3 = loc("sum")\n'
    )


def test_two_results_share_a_reference_and_a_location() -> None:
    graph = Graph("best", "weights.npz")
    values, columns = graph.top(("values", "columns"), graph.input("logits", (1, 9)), 2)
    assert (values, columns) == (Value("%2#0", (1, 2)), Value("%2#1", (1, 2)))
    lines = graph.text([columns]).splitlines()
    assert (
        '    %2:2 = "top.TopK"(%1) {K = 2 : i64, axis = 1 : i64} : (tensor<1x9xf32>) -> '
        "(tensor<1x2xf32>, tensor<1x2xf32>) loc(#loc4)"
    ) in lines
    assert lines[-4:] == [
        '#loc1 = loc("logits")',
        '#loc2 = loc("values")',
        '#loc3 = loc("columns")',
        "#loc4 = loc(fused[#loc2, #loc3])",
    ]


def test_a_packed_product_says_its_bits_and_its_group() -> None:
    graph = Graph("packed", "weights.npz")
    states = graph.input("states", (1, 2, 128))
    packed = (
        graph.weight("integers", (192, 64), "ui8"),
        graph.weight("scales", (192, 2)),
        graph.weight("zeros", (192, 2), "ui8"),
    )
    result = graph.packed_matmul("product", states, packed, 4)
    assert result.shape == (1, 2, 192)
    assert (
        '"top.A16MatMul"(%1, %2, %3, %4, %0) {dq_type = "NONE", q_group_size = 64 : i64, '
        "right_transpose = true, weight_bits = 4 : i64} : (tensor<1x2x128xf32>, tensor<192x64xui8>, "
        "tensor<192x2xf32>, tensor<192x2xui8>, none) -> tensor<1x2x192xf32>"
    ) in graph.text([result])


@pytest.mark.parametrize(
    ("value", "written"), [(1e-6, "1.0e-06"), (1e-5, "1.0e-05"), (0.125, "0.125"), (2.5e-7, "2.5e-07")]
)
def test_floats_have_a_point_in_their_mantissa(value: float, written: str) -> None:
    graph = Graph("norm", "weights.npz")
    states = graph.input("states", (1, 8))
    text = graph.text([graph.rms_norm("normed", states, graph.weight("weight", (1, 8)), value)])
    assert f"{{eps = {written} : f64, weight_keep_f32 = false}}" in text


def test_results_have_the_shapes_of_the_arithmetic() -> None:
    graph = Graph("shapes", "weights.npz")
    left, right = graph.input("left", (1, 2, 3, 4)), graph.input("right", (1, 2, 4, 5))
    product = graph.matmul("product", left, right)
    assert product.shape == (1, 2, 3, 5)
    assert graph.permute("turned", product, (0, 2, 3, 1)).shape == (1, 3, 5, 2)
    assert graph.concatenate("joined", [product, product], 2).shape == (1, 2, 6, 5)
    assert graph.subtract("wide", graph.input("row", (1, 5)), graph.input("column", (4, 1))).shape == (4, 5)
    table, ids = graph.weight("table", (7, 6), "bf16"), graph.input("ids", (1, 3), "si32")
    assert graph.gather("rows", table, ids).shape == (1, 3, 6)
    assert "tensor<7x6xbf16>" in graph.text([product])
