"""The clients under test: their pinned versions, and an environment of its own for each in the user's cache.

Each Python client has a virtual environment, each client for Node a folder with ``node_modules``; both are
made when they are first needed. Not here: what a client does (the scripts beside this file).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CLIENTS", "Client", "ClientMissingError", "install"]

_SCRIPTS = Path(__file__).resolve().parent / "scripts"
_COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class Client:
    """A client in one version, and the scripts that drive it; ``packages[0]`` is the client itself."""

    name: str
    title: str
    scripts: tuple[str, ...]
    packages: tuple[str, ...]
    registry: Literal["pypi", "npm"] = "pypi"

    @property
    def version(self) -> str:
        """The version of the client itself."""
        return self.packages[0].rpartition("=" if self.registry == "pypi" else "@")[2]

    @property
    def folder(self) -> Path:
        """Where its environment is, in the user's cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        return cache / "baichuan2-tpu" / "test-clients" / f"{self.name}-{self.version}"

    @property
    def is_installed(self) -> bool:
        """Whether the environment was completed."""
        return (self.folder / _COMPLETE).exists()

    def command(self, script: str) -> list[str]:
        """Return the command that runs one of the scripts."""
        if self.registry == "npm":
            # The links beside node_modules are kept, or Node would look beside the files they lead to.
            kept = ("--preserve-symlinks", "--preserve-symlinks-main")
            return ["node", *kept, str(self.folder / script)]
        return [str(self.folder / "bin" / "python"), str(_SCRIPTS / script)]


_PYTHON = ("openai_python.py", "openai_responses.py")
_NODE = ("openai_node.mjs", "openai_responses.mjs")

CLIENTS = (
    Client("openai-1", "openai-python 1.x", _PYTHON, ("openai==1.109.1",)),
    Client("openai-2", "openai-python 2.x", _PYTHON, ("openai==2.54.0",)),
    Client("openai-3", "openai-python 3.x", _PYTHON, ("openai==3.57.0",)),
    Client("openai-node", "openai-node", _NODE, ("openai@7.59.0",), "npm"),
    Client("langchain", "LangChain", ("langchain_client.py",), ("langchain-openai==1.7.4",)),
    Client("llama-index", "LlamaIndex", ("llama_index_client.py",), ("llama-index-llms-openai-like==0.8.1",)),
    Client(
        "vercel",
        "Vercel AI SDK",
        ("vercel_ai.mjs",),
        ("ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "zod@4.6.7"),
        "npm",
    ),
    Client(
        "vercel-openai",
        "Vercel AI SDK, provider for OpenAI",
        ("vercel_responses.mjs",),
        ("@ai-sdk/openai@3.0.141", "ai@7.0.173", "zod@4.6.7"),
        "npm",
    ),
    Client(
        "autogen",
        "AutoGen",
        ("autogen_client.py",),
        ("autogen-ext[openai]==0.7.5", "autogen-agentchat==0.7.5"),
    ),
    Client("pydantic-ai", "Pydantic AI", ("pydantic_ai_client.py",), ("pydantic-ai-slim[openai]==2.68.0",)),
    Client("openai-agents", "OpenAI Agents SDK", ("openai_agents.py",), ("openai-agents==0.24.0",)),
    Client("instructor", "Instructor", ("instructor_client.py",), ("instructor==1.17.0",)),
    Client("litellm", "LiteLLM", ("litellm_client.py",), ("litellm==1.110.2",)),
    Client("llm", "simonw/llm", ("llm_client.py",), ("llm==0.36",)),
    Client("continue", "Continue's CLI", ("continue_cli.mjs",), ("@continuedev/cli@1.5.47",), "npm"),
    Client("langchain-0", "LangChain 0.3", ("langchain_client.py",), ("langchain-openai==0.3.31",)),
    Client("dify", "Dify's plugin SDK", ("dify_client.py",), ("dify-plugin==0.7.4",)),
)


class ClientMissingError(Exception):
    """A client cannot be installed on this machine; the message says why."""


def install(client: Client) -> None:
    """Make the environment of a client unless it is complete; one that was broken off is made anew.

    Side effect: packages are downloaded into the user's cache.
    Raises: ClientMissingError with the last lines of the installer.
    """
    if client.is_installed:
        _link_scripts(client)
        return
    shutil.rmtree(client.folder, ignore_errors=True)
    client.folder.mkdir(parents=True)
    if client.registry == "npm":
        _run("npm", "install", "--no-audit", "--no-fund", "--prefix", client.folder, *client.packages)
        _link_scripts(client)
    else:
        _run(sys.executable, "-m", "venv", client.folder)
        _run(client.folder / "bin" / "python", "-m", "pip", "install", "-q", *client.packages)
    (client.folder / _COMPLETE).touch()


def _link_scripts(client: Client) -> None:
    """Put Node's scripts beside its packages, which it does not find otherwise."""
    if client.registry == "npm":
        for script in _SCRIPTS.glob("*.mjs"):
            link = client.folder / script.name
            link.unlink(missing_ok=True)
            link.symlink_to(script)


def _run(*command: object) -> None:
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ClientMissingError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise ClientMissingError(f"{command[0]} ended with exit code {done.returncode}:\n{last}")


def main() -> None:
    """Install the clients that are named, or all."""
    names = sys.argv[1:]
    for client in CLIENTS:
        if not names or client.name in names:
            try:
                install(client)
                print(f"{client.name} {client.version}: {client.folder}", flush=True)  # noqa: T201
            except ClientMissingError as error:
                print(f"{client.name}: {error}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
