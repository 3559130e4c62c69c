"""``baichuan2 serve``: its options.

Not here: what they lead to (``serve_run``, which imports the server's packages).
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.errors import RequestError

__all__ = ["serve"]


class _Sharing(str, Enum):
    KEY = "key"
    ALL = "all"


class _LogForm(str, Enum):
    TEXT = "text"
    JSON = "json"


class _ToolRule(str, Enum):
    OFF = "off"
    FIT = "fit"
    ALL = "all"


_Host = Annotated[str, typer.Option("--host", help="Address to listen on.")]
_Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
]
_Name = Annotated[
    str | None,
    typer.Option("--name", help="The model's name for clients.", show_default="the last part of MODEL"),
]
_ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        help="File with keys, one per line; the environment variable BAICHUAN2_API_KEY can hold one too.",
    ),
]
_TlsCertificate = Annotated[
    Path | None, typer.Option("--tls-certificate", help="PEM file of the certificate chain, for https.")
]
_TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", help="PEM file of the certificate's key, without a password.")
]
_CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin",
        metavar="URL",
        help="Origin of another web page that may use the API; may be repeated.",
    ),
]
_AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="Host name under which clients reach this server, such as a proxy's; may be repeated.",
        show_default="names of this machine, numeric addresses",
    ),
]
_SharePrefixes = Annotated[
    _Sharing,
    typer.Option(
        "--share-prefixes",
        help="Who shares cached beginnings of prompts: clients with the same key, or all clients, who can "
        "then find out what others asked.",
    ),
]
_NoPage = Annotated[bool, typer.Option("--no-page", help="Serve only the API; saves memory.")]
_MaxRunning = Annotated[
    int | None,
    typer.Option(
        "--max-running",
        min=1,
        help="Answers computed at the same time.",
        show_default="16; for a bundle, the rows of its largest head",
    ),
]
_MaxQueue = Annotated[
    int, typer.Option("--max-queue", min=0, help="Requests that may wait; further ones get status 429.")
]
_KvMemory = Annotated[
    float | None,
    typer.Option(
        "--kv-memory",
        min=0.001,
        max=1_000_000,
        metavar="GB",
        help="Memory for the KV cache of all conversations.",
        show_default="half of the machine's memory, minus the weights",
    ),
]
_MaxBody = Annotated[
    float,
    typer.Option("--max-body", min=0.001, max=1_000_000, metavar="MB", help="Largest request body."),
]
_StoredResponses = Annotated[
    int,
    typer.Option(
        "--stored-responses",
        min=0,
        max=1_000_000,
        help="Responses of /v1/responses kept in memory for previous_response_id; 0 keeps none.",
    ),
]
_StoredMemory = Annotated[
    float,
    typer.Option(
        "--stored-memory", min=0, max=1_000_000, metavar="MB", help="Memory for them, conversations included."
    ),
]
_Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0.001,
        max=1_000_000,
        metavar="SECONDS",
        help="Longest time from the arrival of a request to the end of its answer.",
        show_default="no limit",
    ),
]
_Grace = Annotated[
    float,
    typer.Option(
        "--grace",
        min=0,
        max=1_000_000,
        metavar="SECONDS",
        help="Time in which the server ends after a signal; answers still running shortly before it end with "
        "an error.",
    ),
]
_Strict = Annotated[bool, typer.Option("--strict", help="Refuse requests with fields that would be ignored.")]
_AnyModel = Annotated[bool, typer.Option("--any-model", help="Accept any model name in a request.")]
_Tools = Annotated[
    _ToolRule,
    typer.Option(
        "--tools",
        help="Which of a client's tools are described to the model: none, the newest that fit, or all.",
    ),
]
_Log = Annotated[_LogForm, typer.Option("--log", help="Form of log lines: key=value or JSON.")]


def serve(
    model: options.Model,
    *,
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    name: _Name = None,
    api_key_file: _ApiKeyFile = None,
    tls_certificate: _TlsCertificate = None,
    tls_key: _TlsKey = None,
    cors_origin: _CorsOrigin = None,
    allowed_host: _AllowedHost = None,
    share_prefixes: _SharePrefixes = _Sharing.KEY,
    no_page: _NoPage = False,
    max_running: _MaxRunning = None,
    max_queue: _MaxQueue = 64,
    kv_memory: _KvMemory = None,
    max_body: _MaxBody = 4,
    stored_responses: _StoredResponses = 1000,
    stored_memory: _StoredMemory = 64,
    timeout: _Timeout = None,
    grace: _Grace = 30,
    strict: _Strict = False,
    any_model: _AnyModel = False,
    tools: _Tools = _ToolRule.ALL,
    log: _Log = _LogForm.TEXT,
    context: options.Context = None,
    threads: options.Threads = None,
    engine: options.Engine = options.EngineName.AUTO,
    device: options.Device = 0,
    exact: options.Exact = False,
    debug: options.Debug = False,
) -> None:
    """Serve a model over HTTP as OpenAI does, with a web page at /.

    Ctrl-C or SIGTERM lets running answers finish; a second one ends at once. Log lines go to standard error
    and hold no message text.
    """
    try:
        from baichuan2_tpu.cli import serve_run
    except ModuleNotFoundError as error:
        raise _missing_package(error) from error

    keys = serve_run.read_keys(api_key_file)
    allowed = tuple(cors_origin or ()), tuple(allowed_host or ()), int(max_body * 1e6), share_prefixes.value
    plan = serve_run.ServePlan(
        model,
        name or Path(model).resolve().name,
        serve_run.EngineSettings(engine.value, device, context, threads, exact),
        serve_run.Address(host, port, tls_certificate, tls_key),
        serve_run.ServerOptions(keys, *allowed, stored_responses, int(stored_memory * 1e6)),
        serve_run.RequestRules(strict, any_model, tools.value),
        max_running=max_running,
        max_waiting=max_queue,
        kv_bytes=None if kv_memory is None else int(kv_memory * 1e9),
        timeout_s=timeout,
        grace_s=grace,
        has_page=not no_page,
    )
    serve_run.write_logs(log.value, is_debug=debug)
    serve_run.run_server(plan)


def _missing_package(error: ModuleNotFoundError) -> RequestError:
    return RequestError(
        f"serve needs {error.name}, which is not installed; run in the clone: pip install '.[server]'"
    )
