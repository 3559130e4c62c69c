"""Values of JSON become dataclasses, or the key, the value and what is allowed are named."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from baichuan2_tpu.files import FileDigest, check_plain_name, read_values


@dataclass(frozen=True, slots=True)
class Example:
    """One field of each kind."""

    name: str
    bits: Literal[4, 8]
    share: float
    is_done: bool
    lengths: tuple[int, ...]
    files: Mapping[str, FileDigest]
    seed: int | None


VALUES: dict[str, object] = {
    "name": "a",
    "bits": 4,
    "share": 0.5,
    "is_done": True,
    "lengths": [1, 2],
    "files": {"b": {"nbytes": 3, "sha256": "c"}},
    "seed": None,
}


def test_values_become_the_types_of_the_fields() -> None:
    assert read_values(Example, VALUES) == Example("a", 4, 0.5, True, (1, 2), {"b": FileDigest(3, "c")}, None)
    assert read_values(Example, VALUES | {"seed": 7}).seed == 7


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": 1}, "name is 1, allowed is a text"),
        ({"bits": True}, "bits is True, allowed is 4 or 8"),
        ({"share": "x"}, "share is 'x', allowed is a number from 0 on"),
        ({"share": -0.5}, "share is -0.5"),
        ({"is_done": 1}, "is_done is 1, allowed is true or false"),
        ({"lengths": 1}, "lengths is 1, allowed is a list"),
        ({"lengths": [1, True]}, "lengths is True, allowed is a whole number from 0 on"),
        ({"files": []}, "files is [], allowed is an object"),
        ({"files": {"b": {"nbytes": 3}}}, "the key 'sha256' in files.'b' is missing"),
        ({"files": {"b": {"nbytes": 1.5, "sha256": ""}}}, "files.'b'.nbytes is 1.5"),
        ({"seed": "x" * 1000}, "… 1000 characters …"),
        ({"\x1b[2J": 1}, r"the key '\x1b[2J' is unknown"),
    ],
)
def test_what_does_not_fit_is_named_in_a_short_line(change: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        read_values(Example, VALUES | change)
    assert fault in str(caught.value)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_what_is_no_object_is_named() -> None:
    with pytest.raises(ValueError, match=r"it is \[\], allowed is an object"):
        read_values(Example, [])


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "a/b", "../a", "a\n", "a\0", "x" * 256])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        check_plain_name(name)
    check_plain_name("model-00001.safetensors")
