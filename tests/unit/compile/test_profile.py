"""Profiles are read by their totals; texts here are cut from what TPU-MLIR 1.30.2 wrote for a real layer."""

from pathlib import Path

import pytest

from baichuan2_tpu.compile.cycle_profile import PROFILE_NAME, read_cost
from baichuan2_tpu.errors import CompileError
from baichuan2_tpu.manifest import NetCost, Stage

HEAD = """\
--------------------------------------
s: start time, b: bd_id, g: gdma_id, e: end time, t: cmd cost time, dr: direction, sz: memsize, bw: bandwidth
--------------------------------------
ENGINE_BD                             ENGINE_GDMA                                                           \t
                                      RMSNorm_45|GDMA_TENSOR|s:0|b:0|g:1|e:302|t:303|dr:0|sz:8192|bw:25.18
RMSNorm_45|AR|s:303|b:1|g:1|e:306|t:4
"""
TOTALS = """\
--------------------------------------
API_END total_cycle:2279813|b:1672|g:376
TCYC : 2279813
GDMA SUMMARY : |dr[0] S2L:119387658|dr[1] L2S:274432|dr[2] S2S:512|dr[3] L2L:0
DDR BW USAGE : 76.38027728%
#######################################
"""
OPERATIONS = "\n\nflops: 413286912, runtime: 2.279813ms, ComputationAbility: 0.181281T\n"


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return tmp_path / PROFILE_NAME


def test_cost_is_read_from_the_totals(profile: Path) -> None:
    profile.write_text(HEAD + TOTALS + OPERATIONS)
    found = read_cost(profile, net="block_cache_0", stage=Stage(1, 512))
    assert found == NetCost("block_cache_0", 1, 512, 2.279813, 119387658 + 512, 413286912)


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD,
        HEAD + OPERATIONS,
        HEAD + TOTALS[:90] + OPERATIONS,
        HEAD + TOTALS + HEAD + TOTALS + OPERATIONS,
    ],
)
def test_profile_without_one_of_each_total_is_refused(profile: Path, text: str) -> None:
    profile.write_text(text)
    with pytest.raises(CompileError, match=rf"{PROFILE_NAME}: has \d totals of cycles, .* compile net again"):
        read_cost(profile, net="net", stage=Stage(1, 0))


def test_a_net_that_only_copies_has_no_operations(profile: Path) -> None:
    profile.write_text(HEAD + TOTALS)
    assert read_cost(profile, net="embedding", stage=Stage(1, 0)).flops == 0


def test_missing_profile_names_the_net(profile: Path) -> None:
    with pytest.raises(CompileError, match=r"left no profile \(No such file or directory\); compile lm_head"):
        read_cost(profile, net="lm_head", stage=Stage(1, 0))


def test_bytes_that_are_no_text_are_refused(profile: Path) -> None:
    profile.write_bytes(b"\xff\x00\xfe" * 100)
    with pytest.raises(CompileError, match="has 0 totals of cycles"):
        read_cost(profile, net="net", stage=Stage(1, 0))
