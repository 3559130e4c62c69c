"""The picture is well-formed SVG whose bars are as long as the times."""

from xml.etree import ElementTree

import pytest

from baichuan2_tpu.estimate import Estimate, draw, estimate
from models.bundle_manifest import bundle_manifest

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def found() -> Estimate:
    return estimate(bundle_manifest(embedding="device"), [1, 128])


@pytest.fixture
def picture(found: Estimate) -> ElementTree.Element:
    return ElementTree.fromstring(draw(found, title="a bundle"))


def bars(picture: ElementTree.Element) -> list[dict[str, str]]:
    return [bar.attrib for bar in picture.iter(f"{SVG}rect") if bar.get("height") == "18"]


def test_bars_of_a_row_stack_in_proportion_to_the_times(
    found: Estimate, picture: ElementTree.Element
) -> None:
    times = [cost.time_ms for cost in found.decode.parts().values()]
    longest = found.answers[32, 128].total.time_ms
    row = bars(picture)[:3]
    widths = [float(bar["width"]) for bar in row]
    assert widths == pytest.approx([480 * time / longest for time in times], abs=0.06)
    assert float(row[1]["x"]) == pytest.approx(float(row[0]["x"]) + widths[0], abs=0.11)


def test_answers_share_a_scale_and_prompts_have_their_own(
    found: Estimate, picture: ElementTree.Element
) -> None:
    rows: dict[str, float] = {}
    for bar in bars(picture):
        rows[bar["y"]] = rows.get(bar["y"], 0.0) + float(bar["width"])
    *answers, first_of_1, first_of_128 = rows.values()
    assert len(answers) == len(found.answers)
    times = [step.total.time_ms for step in found.answers.values()]
    assert answers == pytest.approx([480 * time / max(times) for time in times], abs=0.2)
    assert first_of_128 == pytest.approx(480, abs=0.2)
    assert first_of_1 == pytest.approx(480 * 4.25 / 17.5, abs=0.2)


def test_words_name_parts_times_and_origin(picture: ElementTree.Element) -> None:
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert words[:2] == ["a bundle", "estimated by the compiler's cycle model, not measured"]
    assert {"layers", "head", "embedding", "17.5 ms", "128", "16 users"} <= set(words)
    assert "One token for each user, up to 32 rows in use" in words
    assert "4.2 ms, 235 tok/s" in words


def test_everything_lies_inside_the_picture(picture: ElementTree.Element) -> None:
    lowest = max(float(bar["y"]) + float(bar["height"]) for bar in bars(picture))
    assert lowest < float(picture.attrib["height"])
