"""Every error of the package has the status that says whose fault it is."""

import pytest
from starlette.exceptions import HTTPException

from baichuan2_tpu import errors
from baichuan2_tpu.server.errors import describe, error_response

EXPECTED = {
    "ArtifactError": 500,
    "BackendError": 500,
    "BackendUnavailable": 503,
    "Baichuan2Error": 500,
    "CallerLeft": 499,
    "CheckpointError": 500,
    "CompileError": 500,
    "ContextLengthError": 400,
    "DeadlineError": 503,
    "DeviceError": 500,
    "FetchError": 500,
    "QueueFull": 429,
    "RequestError": 400,
    "ServiceError": 503,
    "ShutdownError": 503,
    "TooCostly": 400,
}


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_the_package_has_its_status(name: str) -> None:
    kind = getattr(errors, name)
    error = kind("what", 3.0) if name == "QueueFull" else kind("what")
    fault = describe(error)
    assert (fault.status, fault.message) == (EXPECTED[name], "what")
    assert fault.type == ("server_error" if fault.status >= 500 else fault.type)


def test_the_text_of_an_error_nobody_expected_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    fault = describe(ZeroDivisionError("secret"))
    assert fault.status == 500
    assert "secret" not in fault.message
    assert "secret" in caplog.text


def test_what_is_no_unicode_can_be_told() -> None:
    response = error_response(errors.RequestError("no \ud800"))
    assert b"no \\\\ud800" in response.body


def test_the_headers_of_an_error_are_kept() -> None:
    response = error_response(HTTPException(405, headers={"Allow": "GET"}))
    assert response.headers["allow"] == "GET"
