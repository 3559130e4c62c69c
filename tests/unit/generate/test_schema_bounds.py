"""A stranger's schema is bounded before it is compiled, and what makes it costly is named."""

import pytest

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.grammar import schema_bounds
from baichuan2_tpu.generate.grammar.schema_bounds import check_schema, likely_cause

Schema = dict[str, object]


def nested(levels: int, keyword: str = "items") -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(levels - 1):
        schema = {keyword: schema}
    return schema


def chain(links: int, levels: int) -> Schema:
    """Return definitions each of which nests some levels and then refers to the next one."""
    definitions: Schema = {str(links): {"type": "integer"}}
    for link in range(links):
        definition: Schema = {"$ref": f"#/x/{link + 1}"}
        for _ in range(levels):
            definition = {"allOf": [definition]}
        definitions[str(link)] = definition
    return {"x": definitions, "$ref": "#/x/0"}


def test_a_hundred_levels_are_allowed_and_one_more_is_not() -> None:
    check_schema(nested(100))
    with pytest.raises(RequestError, match=r"the schema is nested 101 levels deep, .*; 100 are allowed"):
        check_schema(nested(101))


def test_depth_is_counted_along_references() -> None:
    # 80 definitions of 40 levels, 44 KB, ended the process by SIGSEGV inside the compiler.
    with pytest.raises(RequestError, match=r"nested 6\d\d\d levels deep"):
        check_schema(chain(80, 40))
    check_schema(chain(2, 10))


@pytest.mark.parametrize("levels", [5000, 200_000])
def test_any_depth_is_counted_without_recursion(levels: int) -> None:
    with pytest.raises(RequestError, match=f"nested {levels} levels deep"):
        check_schema(nested(levels))


def test_a_schema_that_refers_to_itself_has_the_depth_of_one_turn() -> None:
    assert schema_bounds._levels({"$ref": "#"}) == 1
    child: Schema = {"properties": {"child": {"$ref": "#"}, "other": {"$ref": "#/properties/child"}}}
    assert schema_bounds._levels(child) == 4  # the schema, its properties, the other one, the child


@pytest.mark.parametrize(
    "reference", ["#/x/9", "#/x/a", "#/type/y", "#name", "http://example.org/#/x", "", "#/"]
)
def test_a_reference_that_leads_nowhere_is_left_to_the_compiler(reference: str) -> None:
    schema: Schema = {"type": "object", "x": [{}]}
    check_schema({**schema, "$ref": reference})
    assert schema_bounds._levels({**schema, "$ref": reference}) == schema_bounds._levels(schema)


def test_references_are_unescaped_as_pointers_are() -> None:
    schema: Schema = {"a/b~c d": nested(90), "allOf": [{"allOf": [{"$ref": "#/a~1b~0c%20d"}] * 1}] * 1}
    for _ in range(5):
        schema["allOf"] = [{"allOf": schema["allOf"]}]
    with pytest.raises(RequestError, match="levels deep"):
        check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        ({"type": "integer", "multipleOf": 4999999}, "multipleOf 4999999 at #"),
        (
            {"properties": {"a": {"maxLength": 10**6}, "b": {"multipleOf": 5000}}},
            "maxLength 1000000 at #/properties/a",
        ),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "allOf of 2 schemas at #"),
        ({"type": "string", "pattern": "a"}, "its patterns, or how its parts refer to each other"),
    ],
)
def test_the_likely_cause_is_named_with_its_place(schema: Schema, cause: str) -> None:
    assert likely_cause(schema) == cause
