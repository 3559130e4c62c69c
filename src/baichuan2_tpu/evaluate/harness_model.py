"""A model in the form that lm-evaluation-harness expects: three kinds of requests, answered by a ``Subject``.

Needs the extra ``eval``. Not here: tokens (``harness_requests``), tasks and results (``tasks``).
Source: ``lm_eval.api.model.LM`` of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from baichuan2_tpu.evaluate.batch_answers import answer_questions
from baichuan2_tpu.evaluate.harness_requests import HarnessRequests
from baichuan2_tpu.evaluate.passages import Progress
from baichuan2_tpu.evaluate.subject import Subject, no_answers

__all__ = ["SubjectLM"]


class SubjectLM(LM):
    """Answers the harness's requests."""

    def __init__(self, subject: Subject, on_progress: Progress | None = None) -> None:
        super().__init__()
        self._subject = subject
        self._on_progress = on_progress
        self._requests = HarnessRequests(subject)

    @property
    def cut_requests(self) -> int:
        """Contexts whose beginning did not fit the model's context."""
        return self._requests.cut_requests

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps requests apart by; nothing is kept here."""
        return self._subject.tokenizer_name

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return the log likelihood of every continuation, and whether it is the greedy one."""
        passages = [self._requests.passage(*request.args[:2]) for request in requests]
        scores = self._subject.scorer.score(passages, self._on_progress)
        pairs = zip(passages, scores, strict=True)
        return [(-score.loss, score.is_greedy(passage)) for passage, score in pairs]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Return the log likelihood of every document."""
        documents = [self._requests.document(request.args[0]) for request in requests]
        passages = [passage for document in documents for passage in document]
        scores = self._subject.scorer.score(passages, self._on_progress)
        ends = accumulate((len(document) for document in documents), initial=0)
        return [-sum(score.loss for score in scores[start:end]) for start, end in pairwise(ends)]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return the answer to every prompt.

        Raises: RequestError for float weights, which only score.
        """
        engine = self._subject.engine
        if engine is None:
            raise no_answers(self._subject.name)
        questions = [self._requests.question(*request.args[:2]) for request in requests]
        return answer_questions(engine, self._subject.tokenizer, questions, self._on_progress)

    def apply_chat_template(
        self,
        chat_history: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
    ) -> str:
        """Return what stands for a conversation in the harness; see ``HarnessRequests.chat``."""
        return self._requests.chat(chat_history, is_answered=not add_generation_prompt)
