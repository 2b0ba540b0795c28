"""The command line: `pushgate dev | gateway | processor | send | listen | token | top | …`."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Final

import click

#: The commands, each a file in `commands` with a command of its name.
_COMMANDS: Final = (
    "dev", "gateway", "processor", "send", "listen", "token", "top", "who", "kick", "drain",
    "reload", "tail", "audit", "doctor", "completion",
)  # fmt: skip


class _Commands(click.Group):
    """Imports a command when it is asked for.

    A gateway need not import the processor, and the other way round: that would be a fifth of the
    CPU time of a start, when ten thousand clients of a killed node may be waiting.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands, in the order of the help text."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command; None for a name that is no command's."""
        if cmd_name not in _COMMANDS:
            return None
        # Modules make a hundred thousand objects, and none of them is garbage: to look for some
        # meanwhile is a tenth of the time.
        gc.disable()
        try:
            module = import_module(f"pushgate.commands.{cmd_name}")
        finally:
            gc.enable()
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pushgate")
def cli() -> None:
    """A push gateway: Kafka in, WebSocket, SSE and long-poll out."""


def main() -> None:
    """Run the command line."""
    cli(prog_name="pushgate")
