"""The cpu engine serves interleaved requests with the tokens that each gets alone."""

from __future__ import annotations

from hypothesis import given, settings

from baichuan2_tpu.engine.cpu import CpuEngine
from doubles.fakes import ByteTokenizer
from models.random_model import SHAPES, random_weights
from schedules.interleaving import Course, check_course, courses

CONTEXT = 96


def new_engine() -> CpuEngine:
    return CpuEngine(random_weights("grouped", 4), context=CONTEXT, threads=2)


@settings(max_examples=30)
@given(courses(CONTEXT))
def test_answers_are_those_of_an_engine_for_each_request(course: Course) -> None:
    controls = [f"<{one}>" for one in range(SHAPES["grouped"].vocabulary_size - ByteTokenizer.END_ID - 1)]
    with new_engine() as engine:
        check_course(course, engine, new_engine, ByteTokenizer(controls))
