"""Whatever the description of the API allows, or just does not, the server answers as it describes."""

from collections.abc import Callable, Iterator

import jsonschema_rs
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from numpy.typing import NDArray
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema
from starlette.testclient import TestClient

from baichuan2_tpu.server.app import create_app
from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import MODEL, running_service

TOKENIZER = ByteTokenizer()
_ALL = [HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.too_slow]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


class BriefEngine(HistoryEngine):
    """Ends every answer at once, however many tokens were asked for."""

    def logits(self, ids: object) -> NDArray[np.float32]:
        row = np.zeros(TOKENIZER.vocabulary_size, np.float32)
        row[TOKENIZER.END_ID] = 100
        return row


@pytest.fixture(scope="module")
def described() -> Iterator[OpenApiSchema]:
    with running_service(BriefEngine(TOKENIZER.vocabulary_size, max_context=4096)) as service:
        app = create_app(service)
        with TestClient(app):
            yield schemathesis.openapi.from_asgi("/openapi.json", app)


OPERATIONS = [
    ("/v1/chat/completions", "post"),
    ("/v1/completions", "post"),
    ("/v1/responses", "post"),
    ("/v1/responses/{response_id}", "get"),
    ("/v1/responses/{response_id}", "delete"),
    ("/v1/responses/{response_id}/input_items", "get"),
    ("/v1/models", "get"),
    ("/v1/models/{name}", "get"),
    ("/tokenize", "post"),
    ("/detokenize", "post"),
    ("/tokenizer_info", "get"),
    ("/health", "get"),
    ("/health/live", "get"),
    ("/health/ready", "get"),
    ("/metrics", "get"),
]


def test_every_operation_is_looked_at(described: OpenApiSchema) -> None:
    operations = [
        (path, method) for path, methods in described.raw_schema["paths"].items() for method in methods
    ]
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_is_described_as_allowed_is_answered(described: OpenApiSchema, path: str, method: str) -> None:
    statuses = check_answers(described, path, method, GenerationMode.POSITIVE)
    assert 200 in statuses or path == "/v1/models/{name}"  # no drawn name is the model's


@pytest.mark.parametrize(
    ("path", "method"), [(path, method) for path, method in OPERATIONS if method == "post"]
)
def test_what_is_not_allowed_is_refused(described: OpenApiSchema, path: str, method: str) -> None:
    statuses = check_answers(described, path, method, GenerationMode.NEGATIVE)
    assert statuses <= {400, 404, 405, 422}


def test_a_role_that_another_kind_of_message_has_is_no_wrong_one(described: OpenApiSchema) -> None:
    # It was drawn as a role that no message has, wherever other tests had the word in them.
    is_allowed = body_checker(described, "/tokenize", "post")
    assert is_allowed({"messages": [{"role": "developer", "content": None}]})
    assert not is_allowed({"messages": [{"role": "nobody", "content": None}]})


def check_answers(schema: OpenApiSchema, path: str, method: str, mode: GenerationMode) -> set[int]:
    """Check answers to drawn requests, and return their statuses."""
    statuses: set[int] = set()
    is_allowed = body_checker(schema, path, method)

    @given(schema[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=100, derandomize=True, suppress_health_check=_ALL)
    def check(case: schemathesis.Case) -> None:
        # What is wrong for one kind of message may be right for another: "developer" where "user" has to be.
        is_body_wrong = case.meta is not None and set(case.meta.components) == {ParameterLocation.BODY}
        assume(not (mode is GenerationMode.NEGATIVE and is_body_wrong and is_allowed(case.body)))
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL
        if case.path_parameters and len(case.path_parameters.get("response_id", "")) % 2:
            case.path_parameters["response_id"] = store_response(schema)
        statuses.add(case.call_and_validate(checks=CHECKS).status_code)

    check()
    return statuses


def body_checker(schema: OpenApiSchema, path: str, method: str) -> Callable[[object], bool]:
    """Return what tells whether a body is one that is described as allowed."""
    raw = schema.raw_schema
    if "requestBody" not in raw["paths"][path][method]:
        return lambda body: False
    place = path.replace("/", "~1")
    validator = jsonschema_rs.Draft202012Validator(
        {
            "$ref": f"#/paths/{place}/{method}/requestBody/content/application~1json/schema",
            "paths": raw["paths"],
            "components": raw["components"],
        }
    )

    def is_allowed(body: object) -> bool:
        try:
            return validator.is_valid(body)
        except ValueError:  # it is not JSON
            return False

    return is_allowed


def store_response(schema: OpenApiSchema) -> str:
    """Return the id of a new response: none that is drawn is stored."""
    create = schema["/v1/responses"]["post"]
    response = create.Case(body={"input": "hi"}, media_type="application/json").call()
    return response.json()["id"]
