"""The ``baichuan2`` command: its verbs, its exit codes, and the one place where any error becomes one line.

Standard output holds results only; notices, progress and errors go to standard error. Exit codes: 0 done,
1 failed, 2 wrong usage, 130 interrupted. Verbs import what they need when they run, so that ``--help`` is
quick. Not here: what a verb does (one module each), the shared options (``options``).
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated, Protocol, runtime_checkable

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.bench import bench
from baichuan2_tpu.cli.chat import chat
from baichuan2_tpu.cli.compile import compile_checkpoint
from baichuan2_tpu.cli.doctor import doctor
from baichuan2_tpu.cli.estimate import estimate
from baichuan2_tpu.cli.evaluate import evaluate
from baichuan2_tpu.cli.fetch import fetch
from baichuan2_tpu.cli.generate import generate
from baichuan2_tpu.cli.info import info
from baichuan2_tpu.cli.quantize import quantize
from baichuan2_tpu.cli.serve import serve
from baichuan2_tpu.cli.terminal import notice, printable
from baichuan2_tpu.cli.toolchain import toolchain
from baichuan2_tpu.errors import Baichuan2Error

__all__ = ["app", "main"]

_INTERRUPTED = 130
"""128 + SIGINT, the shells' convention."""

app = typer.Typer(
    name="baichuan2",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (chat, generate, serve, fetch, quantize, info, bench, estimate, evaluate, doctor):
    app.command()(_verb)
app.command("compile")(compile_checkpoint)
app.add_typer(toolchain)


@runtime_checkable
class _UsageError(Protocol):
    """What Typer raises for a wrong command line; the class itself moved between versions of Typer."""

    exit_code: int

    def format_message(self) -> str: ...


def _print_version(value: bool) -> None:
    if value:
        from baichuan2_tpu import __version__

        typer.echo(f"baichuan2-tpu {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    debug: options.Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Chat with Baichuan2 and other models of the Llama family on any CPU, or on a BM1684X.

    MODEL is the directory of a checkpoint or of a compiled bundle, a .gguf file, or a name that
    baichuan2 fetch --list shows, such as demo or baichuan2-7b-chat.
    """


def main() -> None:
    """Run the command line and leave the process.

    Raises: SystemExit with 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode still gets the answer
    settings = options.Settings()
    try:
        words = sys.argv[1:] or ["--help"]
        code = app(words, prog_name="baichuan2", standalone_mode=False, obj=settings) or 0
    except Exception as error:  # noqa: BLE001 - the one place where any error becomes one line
        if settings.is_debug:
            traceback.print_exc()
        code = _report(error)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


def _open_missing_streams() -> None:
    """Open the null device for each of standard input, output and error that is closed.

    Otherwise the next file or connection gets its number, and what any library prints is written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - to the end


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _report(error: Exception) -> int:
    """Write one line about an error and return the exit code."""
    if isinstance(error, typer.Abort):
        return _INTERRUPTED
    if isinstance(error, BrokenPipeError):
        sys.stdout = io.StringIO()  # the reader is gone: nothing is left to flush to
        return 1
    if isinstance(error, _UsageError):
        command = getattr(getattr(error, "ctx", None), "command_path", "baichuan2")
        notice(f"error: {error.format_message().rstrip('.?')}; see {command} --help")
        return error.exit_code
    if isinstance(error, Baichuan2Error):
        notice(f"error: {printable(str(error))}")
    elif isinstance(error, OSError):
        notice(f"error: {printable(_describe(error))}")
    else:
        kind = type(error).__name__
        notice(
            f"error: internal: {kind}: {printable(str(error))}; please report it with the output of --debug"
        )
    return 1


def _describe(error: OSError) -> str:
    """Say what could not be read or written, and why; without a name it is what was printed."""
    if error.strerror is None:
        return str(error)
    place = error.filename or "standard output"
    return f"{place}: {error.strerror}; name what can be read or written, on a disk with free space"
