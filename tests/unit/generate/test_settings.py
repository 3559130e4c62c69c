"""Settings refuse what cannot work, and a checkpoint's defaults are read as Hugging Face reads them."""

import json
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.generate.settings import GenerationSettings, GivenSettings, SamplingSettings, read_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; 0 to 100 is allowed"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; 0 or more is allowed"),
        ({"top_p": 1.1}, "top_p is 1.1; 0 to 1 is allowed"),
        ({"min_p": 2}, "min_p is 2; 0 to 1 is allowed"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; 0.01 to 100 is allowed"),
        ({"seed": -1}, "seed is -1; 0 to"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1; -2 to 2 is allowed"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3; -2 to 2 is allowed"),
        ({"logit_bias": ((5, 101),)}, "logit_bias of token 5 is 101; -100 to 100 is allowed"),
        ({"logit_bias": ((5, 1),) * 1025}, "number of tokens in logit_bias is 1025; 0 to 1024 is allowed"),
    ],
)
def test_sampling_settings_name_the_value_and_the_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingSettings(**changes)  # pyright: ignore[reportArgumentType] - the faults under test


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; 1 or more is allowed"),
        ({"logprobs": 21}, "logprobs is 21; 0 to 20 is allowed"),
        ({"max_tokens": -1, "prompt_logprobs": 0}, "max_tokens is -1; 0 or more is allowed"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21; 0 to 20 is allowed"),
        ({"stop": ("a", "")}, "a stop string is empty"),
    ],
)
def test_generation_settings_name_the_value_and_the_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        GenerationSettings(**changes)  # pyright: ignore[reportArgumentType] - the faults under test


def write(directory: Path, values: object) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return directory


def test_baichuan2_defaults(tmp_path: Path) -> None:
    values = {
        "do_sample": True,
        "eos_token_id": 2,
        "max_new_tokens": 2048,
        "temperature": 0.3,
        "top_k": 5,
        "top_p": 0.85,
        "repetition_penalty": 1.05,
        "user_token_id": 195,
    }
    assert read_settings(write(tmp_path, values)) == GenerationSettings(
        sampling=SamplingSettings(temperature=0.3, top_k=5, top_p=0.85, repetition_penalty=1.05),
        max_tokens=2048,
        stop_ids=frozenset({2}),
    )


@pytest.mark.parametrize("values", [{}, {"do_sample": False, "temperature": 0.3}, {"temperature": 0.3}])
def test_a_checkpoint_that_does_not_sample_is_greedy(tmp_path: Path, values: object) -> None:
    assert read_settings(write(tmp_path, values)).sampling.is_greedy


def test_a_checkpoint_without_defaults_is_greedy(tmp_path: Path) -> None:
    assert read_settings(tmp_path).sampling.is_greedy


def test_several_stop_ids_are_read(tmp_path: Path) -> None:
    assert read_settings(write(tmp_path, {"eos_token_id": [2, 7]})).stop_ids == {2, 7}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": "2"}, "eos_token_id is '2'; a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True; a whole number"),
        ({"top_p": "high"}, "top_p is 'high'; a number"),
        ({"top_p": 3}, "top_p is 3.0; 0 to 1"),
        ([], "holds a list"),
    ],
)
def test_a_bad_default_is_refused_with_its_file(tmp_path: Path, values: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json.*{message}"):
        read_settings(write(tmp_path, values))


def test_what_is_given_goes_before_the_models_own_and_none_leaves_it() -> None:
    own = GenerationSettings(
        SamplingSettings(temperature=0.3, top_k=5), max_tokens=9, stop_ids=frozenset({2})
    )
    assert own.override() == own
    assert own.override(temperature=None, max_tokens=None, stop=None) == own
    given = own.override(temperature=1, seed=3, max_tokens=4, stop="a", logit_bias={7: -1}, stop_ids=[3, 4])
    assert given.sampling == SamplingSettings(temperature=1, top_k=5, seed=3, logit_bias=((7, -1.0),))
    assert (given.max_tokens, given.stop, given.stop_ids) == (4, ("a",), {3, 4})


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"temperature": np.float32(0.5), "max_tokens": np.int64(4), "seed": np.uint8(3)}
    settings = GenerationSettings().override(**given)  # pyright: ignore[reportArgumentType]
    assert settings.sampling == SamplingSettings(temperature=0.5, seed=3)
    assert (settings.max_tokens, type(settings.max_tokens)) == (4, int)


def test_a_setting_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(RequestError) as caught:
        GenerationSettings().override(temprature=1)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert str(caught.value) == (
        "there is no setting 'temprature'; allowed are temperature, top_k, top_p, min_p, "
        "repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, max_tokens, stop, "
        "stop_ids, logprobs, prompt_logprobs, grammar, "
        "min_tokens, ignore_eos, own_stop_ids"
    )


def test_every_setting_of_an_answer_can_be_given() -> None:
    settings = {field.name for kind in (SamplingSettings, GenerationSettings) for field in fields(kind)}
    assert settings - {"sampling"} == set(GivenSettings.__annotations__)
