"""How good a model is: perplexity of a text and tasks of lm-evaluation-harness, alone or compared.

Everything goes through the scorers of a ``Subject``: an engine, or the float weights. Not here: opening
models and printing (``cli``), speed (``bench``).
"""

from baichuan2_tpu.evaluate.engine_scorer import EngineScorer
from baichuan2_tpu.evaluate.float_scorer import FloatScorer
from baichuan2_tpu.evaluate.perplexity import Perplexity, PerplexityRise
from baichuan2_tpu.evaluate.report import Evaluation, Report
from baichuan2_tpu.evaluate.scored_text import ScoredText, language_reference
from baichuan2_tpu.evaluate.subject import Subject, TextPlan, measure_perplexity
from baichuan2_tpu.evaluate.task_scores import TaskScore

__all__ = [
    "EngineScorer",
    "Evaluation",
    "FloatScorer",
    "Perplexity",
    "PerplexityRise",
    "Report",
    "ScoredText",
    "Subject",
    "TaskScore",
    "TextPlan",
    "language_reference",
    "measure_perplexity",
]
