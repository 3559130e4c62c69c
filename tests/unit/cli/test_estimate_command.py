"""``baichuan2 estimate`` answers from the manifest alone: no bmodel, no device and no compiler."""

import json
from pathlib import Path

import pytest

from baichuan2_tpu.estimate import LEFT_OUT
from models.bundle_manifest import bundle_manifest
from running.cli_command import Run

TABLES = """\
bm1684x: 2 layers of 4 bits, w8 head, context 128, 128 rows
estimated, not measured, by the cycle model of TPU-MLIR 1.30.2

one user, 32 rows   launches     ms          share   MB read   roofline ms
──────────────────────────────────────────────────────────────────────────
layers                     2   3.00          75.0%       2.1          0.12
head                       1   1.00          25.0%       0.3          0.00
a token                    3   4.00   250.00 tok/s       2.4          0.13

ms per step (tok/s), rows in use      1 user     4 users      8 users     16 users      32 users
────────────────────────────────────────────────────────────────────────────────────────────────
32                                 4.0 (250)   6.5 (615)   6.5 (1231)   6.5 (2462)   11.0 (2909)
128                                5.0 (200)   6.5 (615)   6.5 (1231)   6.5 (2462)   11.0 (2909)

with a prompt of 48, rows in use      1 answer     4 answers     8 answers     16 answers     32 answers
────────────────────────────────────────────────────────────────────────────────────────────────────────
32                                 9.5 (2.38x)   9.5 (1.46x)   9.5 (1.46x)   10.5 (1.62x)   17.0 (1.55x)
128                                9.5 (1.90x)   9.5 (1.46x)   9.5 (1.46x)   10.5 (1.62x)   17.0 (1.55x)

ms per layer, rows read   1 new   16 new   64 new
─────────────────────────────────────────────────
32                        1.500        -        -
128                       2.000    2.500    4.000

prompt tokens   in launches of   first token ms   roofline ms   KV cache MB
───────────────────────────────────────────────────────────────────────────
1                            1              4.0           0.1           0.0
14                          16              6.0           2.0           0.0
64                          64              9.0           8.0           0.1
128                      64 x2             17.0          16.0           0.1

rows in use: at most so many, of all sequences together and with what the step writes
roofline: 54.0 GB/s, the cycle model's own limit; 16 TFLOPS in half precision, the data sheet of the BM1684X
left out:
- the host: choosing a token, gathering embeddings, building masks, starting every launch
- what is moved between host and device: states, positions, masks, logits
- traffic between devices, other users of the memory, a lower clock when the chip is hot
held against:
- the vendor's Qwen-7B sample measures 0.97 to 1.02 of such an estimate: it copies nothing on the device
- the vendor's Baichuan2 sample measures 1.37 of it: 64 copies on the device per token, about 0.3 ms each
- the engine here is like the first: keys and values are written where they stay; not measured yet
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    bundle_manifest().write(folder)
    return folder


def test_tables_show_tokens_by_users_a_layer_and_the_first_token(run: Run, bundle: Path) -> None:
    done = run("estimate", bundle)
    assert (done.code, done.err) == (0, "")
    assert done.out == TABLES


def test_json_is_one_object_on_one_line(run: Run, bundle: Path) -> None:
    done = run("estimate", bundle, "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    values = json.loads(done.out)
    assert (values["decode_ms"], values["first_token_ms"]["14"]) == (4.0, 6.0)
    assert values["left_out"] == list(LEFT_OUT)


def test_picture_in_the_bundle_leaves_it_valid(run: Run, bundle: Path) -> None:
    picture = bundle / "estimate.svg"
    done = run("estimate", bundle, "--picture", picture, "--json")
    assert (done.code, done.err) == (0, f"[picture: {picture}]\n")
    assert "bm1684x: 2 layers of 4 bits, w8 head, context 128, 128 rows" in picture.read_text("utf-8")
    bundle_manifest().verify(bundle)
    assert run("estimate", bundle).code == 0


def test_picture_that_cannot_be_written_is_one_line(run: Run, bundle: Path) -> None:
    done = run("estimate", bundle, "--json", "--picture", bundle / "no" / "estimate.svg")
    assert done.code == 1
    assert done.err == (
        f"error: {bundle}/no/estimate.svg: No such file or directory; name what can be read or written, on a "
        "disk with free space\n"
    )


def test_folder_without_a_manifest_names_the_next_step(run: Run, tmp_path: Path) -> None:
    done = run("estimate", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: {tmp_path}: holds no manifest.json; make a bundle with baichuan2 compile\n"


def test_missing_argument_is_wrong_usage(run: Run) -> None:
    done = run("estimate")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: Missing argument 'BUNDLE'; see baichuan2 estimate --help\n"
