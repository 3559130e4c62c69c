"""What OpenAI's own Python client asks of a live server and gets."""

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from baichuan2_tpu.server.service import Service

MODEL = "Tiny-Chat"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "你好"}]


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "baichuan2-tpu"


def test_a_chat_is_answered_with_true_counts(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert answer.usage is not None
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert answer.usage.completion_tokens == len(choice.logprobs.content) == 5
    spoken = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
    assert spoken.decode("utf-8", "replace") == choice.message.content


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, temperature: float) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=20, temperature=temperature, seed=3
    )
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=20,
            temperature=temperature,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens


def test_the_client_puts_a_stream_together_itself(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0)
    text = whole.choices[0].message.content or ""
    # Its helper takes an answer that was cut off for a fault.
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True, stop=text[-1]
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text[: text.index(text[-1])]


def test_the_same_seed_says_the_same_and_another_does_not(client: openai.OpenAI) -> None:
    def say(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=20, temperature=1, seed=seed
        )
        return answer.choices[0].message.content

    assert say(1) == say(1) != say(2)


def test_a_stop_string_ends_an_answer_before_it(client: openai.OpenAI) -> None:
    def say(stop: str | None) -> str:
        answer = client.completions.create(model=MODEL, prompt="a", max_tokens=30, temperature=0, stop=stop)
        return answer.choices[0].text

    whole = say(None)
    stop = whole[len(whole) // 2]
    assert say(stop) == whole[: whole.index(stop)]


def test_a_bias_makes_a_token_certain(client: openai.OpenAI, service: Service) -> None:
    (token_id,) = service.model.tokenizer.encode("a")
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=3,
        temperature=0,
        logit_bias={str(token_id): 100},
        extra_body={"repetition_penalty": 1},
    )
    assert answer.choices[0].message.content == "aaa"


def test_scores_of_a_prompt_are_those_of_the_same_tokens_when_chosen(
    client: openai.OpenAI, service: Service
) -> None:
    prompt = service.model.tokenizer.encode("capital")
    chosen = client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0, logprobs=1)
    expected = chosen.choices[0].logprobs
    assert expected is not None
    text = "capital" + chosen.choices[0].text
    scored = client.completions.create(
        model=MODEL, prompt=text, max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert scored.choices[0].text.startswith(text)
    assert logprobs.token_logprobs[0] is None
    if logprobs.tokens[len(prompt) : -1] == expected.tokens:  # the text may be cut into other tokens
        assert logprobs.token_logprobs[len(prompt) : -1] == pytest.approx(expected.token_logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (openai.NotFoundError, {"model": "gpt-4"}),
        (openai.UnprocessableEntityError, {"temperature": -1}),
        (openai.UnprocessableEntityError, {"extra_body": {"top_k": "many"}}),
        (openai.BadRequestError, {"extra_body": {"guided_regex": "a"}}),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "x" * 5000}]}),
    ],
)
def test_a_fault_of_the_client_is_the_exception_it_knows(
    client: openai.OpenAI, kind: type[openai.APIStatusError], fields: dict[str, object]
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **fields})  # pyright: ignore[reportCallIssue, reportArgumentType] - faults on purpose
    assert caught.value.type == "invalid_request_error"


def test_many_clients_at_once_get_their_own_answers(url: str, client: openai.OpenAI) -> None:
    prompts = [f"capital {number}" for number in range(8)]

    def alone(prompt: str) -> str:
        return client.completions.create(model=MODEL, prompt=prompt, temperature=0).choices[0].text

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as many:
            answers = await asyncio.gather(
                *(many.completions.create(model=MODEL, prompt=prompt, temperature=0) for prompt in prompts)
            )
        return [answer.choices[0].text for answer in answers]

    assert asyncio.run(together()) == [alone(prompt) for prompt in prompts]
