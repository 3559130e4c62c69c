"""Write docs/cli.md from the command line itself; with --check, fail when the page is not in step.

Not here: explanations of more than a line, which belong into the README.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.testing import CliRunner

from baichuan2_tpu.cli import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# Command line

<!-- Written by scripts/generate_cli_reference.py; change the code, then run it again. -->

Standard output holds results only; notices, progress and errors go to standard error.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. An error is one line that begins with `error:`;
`--debug` shows its traceback too.
"""


def help_text(*words: str) -> str:
    """Return what --help prints, at a fixed width."""
    result = CliRunner().invoke(app, [*words, "--help"], terminal_width=100, prog_name="baichuan2")
    if result.exit_code != 0:
        raise SystemExit(f"error: {' '.join(words)} --help failed: {result.output}")
    return result.stdout.strip()


def commands(group: object, *words: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of every verb, those of a verb's own verbs after it."""
    for verb, command in getattr(
        group, "commands", {}
    ).items():  # the class that has them is private to Typer
        yield (*words, verb)
        yield from commands(command, *words, verb)


def render() -> str:
    """Return the whole page."""
    parts = [HEAD, f"```text\n{help_text()}\n```\n"]
    parts += [
        f"## baichuan2 {' '.join(words)}\n\n```text\n{help_text(*words)}\n```\n"
        for words in commands(typer.main.get_command(app))
    ]
    return "\n".join(parts)


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    page = render()
    if not parser.parse_args().check:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(
        "error: docs/cli.md is not in step with the code; run scripts/generate_cli_reference.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
