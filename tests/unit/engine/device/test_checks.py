"""A launch is checked against the shapes that a net was compiled for."""

from __future__ import annotations

import itertools

import pytest

from baichuan2_tpu.engine.device.base import Buffer, NetInfo, Shape, StageInfo, TensorInfo
from baichuan2_tpu.engine.device.checks import check_launch
from baichuan2_tpu.errors import DeviceError


class Sized(Buffer):
    def __init__(self, *shape: int) -> None:
        self.dtype = "float16"
        self.shape: Shape = shape


def net(*, is_dynamic: bool) -> NetInfo:
    tensor = TensorInfo("x", "float16", (1, 8))
    return NetInfo("net", is_dynamic, False, (StageInfo((tensor,), (tensor,)),))


def is_taken(shape: Shape) -> bool:
    try:
        check_launch(net(is_dynamic=True), 0, [Sized(*shape)], [Sized(*shape)])
    except DeviceError:
        return False
    return True


def test_a_dynamic_net_takes_shapes_up_to_the_compiled_one() -> None:
    taken = [shape for shape in itertools.product(range(4), range(12)) if is_taken(shape)]
    assert taken == [(1, columns) for columns in range(1, 9)]


@pytest.mark.parametrize("shape", [(1, 9), (2, 8), (8,), (1, 0)])
def test_a_dynamic_net_takes_no_others(shape: Shape) -> None:
    with pytest.raises(DeviceError, match=r"net, x: takes float16 \[1, 8\], not float16"):
        check_launch(net(is_dynamic=True), 0, [Sized(*shape)], [Sized(1, 8)])


def test_a_static_net_takes_the_compiled_shape_alone() -> None:
    check_launch(net(is_dynamic=False), 0, [Sized(1, 8)], [Sized(1, 8)])
    with pytest.raises(DeviceError, match=r"not float16 \[1, 3\]"):
        check_launch(net(is_dynamic=False), 0, [Sized(1, 8)], [Sized(1, 3)])
