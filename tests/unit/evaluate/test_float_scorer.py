"""Float weights score as the reference does, whatever lengths go through the layers together."""

from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import ContextLengthError
from baichuan2_tpu.evaluate import FloatScorer, float_scorer
from baichuan2_tpu.evaluate.passages import Passage
from baichuan2_tpu.reference.float_model import FloatModel
from models.reference import reference_logits
from models.tiny_checkpoint import alibi_config, float_weights, rope_config, write_llama_safetensors


@pytest.mark.parametrize("config", [rope_config(), alibi_config()], ids=["rope", "alibi"])
@pytest.mark.parametrize("state_bytes", [1, 1 << 29])
def test_scores_are_those_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ModelConfig, state_bytes: int
) -> None:
    monkeypatch.setattr(float_scorer, "_STATE_BYTES", state_bytes)
    checkpoint = FloatCheckpoint.open(write_llama_safetensors(tmp_path, config))
    weights = {
        name: checkpoint.read(name.removesuffix(".weight")) for name in float_weights(checkpoint.config, 0)
    }
    passages = [Passage(tuple(range(3, 90)), 70), Passage((5, 6, 7), 1), Passage((5, 6, 8), 1)]
    found = FloatScorer(FloatModel(checkpoint)).score(passages)
    for passage, score in zip(passages, found, strict=True):
        rows = reference_logits(checkpoint.config, weights, passage.tokens)[passage.first - 1 : -1]
        targets = list(passage.tokens[passage.first :])
        losses = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), targets]
        np.testing.assert_allclose(score.losses, losses, rtol=0, atol=1e-4)
        assert score.best.tolist() == rows.argmax(axis=1).tolist()


def test_progress_counts_layers_and_a_long_passage_is_refused(tmp_path: Path) -> None:
    config = rope_config()
    scorer = FloatScorer(FloatModel(FloatCheckpoint.open(write_llama_safetensors(tmp_path, config))))
    seen: list[tuple[int, int]] = []
    scorer.score([Passage((5, 6, 7), 1)], lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(ContextLengthError, match=f"the context holds {config.max_context}"):
        scorer.score([Passage((5,) * (config.max_context + 2), 1)])
