"""A few damaged files for every reader; scripts/fuzz tries as many as it is told, each reader apart."""

import pytest

from fuzz.readers import READERS
from fuzz.run import fuzz

INPUTS = 20


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(name: str) -> None:
    outcome = fuzz(name, INPUTS, seed=1)
    assert outcome.inputs == INPUTS
