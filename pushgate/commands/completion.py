"""`pushgate completion`."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

_SHELLS: Final[dict[str, type[ShellComplete]]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@click.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and flags.

    \b
    bash, in ~/.bashrc:   eval "$(pushgate completion bash)"
    zsh, in ~/.zshrc:     eval "$(pushgate completion zsh)"
    fish:  pushgate completion fish > ~/.config/fish/completions/pushgate.fish
    """
    # The variable that click itself looks at for a program of this name.
    complete = _SHELLS[shell](context.find_root().command, {}, "pushgate", "_PUSHGATE_COMPLETE")
    click.echo(complete.source_template % complete.source_vars())
