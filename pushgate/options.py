"""Settings as command-line flags: every field is a flag and a PUSHGATE_… variable."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

PREFIX = "PUSHGATE_"
#: The user name and password before the @ of a URL, which must not be shown in an error.
_CREDENTIALS = re.compile(r"[^/@]*@")

_F = TypeVar("_F", bound=Callable[..., Any])
_Settings = TypeVar("_Settings", bound=BaseSettings)


def settings_options(settings: type[BaseSettings]) -> Callable[[_F], _F]:
    """Decorate a command with an option for every field; the value of an unset option is None."""

    def decorate(command: _F) -> _F:
        for name, field in reversed(settings.model_fields.items()):
            command = _option(name, field)(command)
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[_F], _F]:
    """Return the option of a field: two flags without a value for a boolean."""
    flag = name.replace("_", "-")
    help_text = f"{field.description}{_shown_default(field)}  ${PREFIX}{name.upper()}"
    if field.annotation is bool:
        return click.option(f"--{flag}/--no-{flag}", name, help=help_text, default=None)
    return click.option(f"--{flag}", name, metavar="VALUE", help=help_text, default=None)


def _shown_default(field: FieldInfo) -> str:
    """Return a field's default for the help; nothing where the start makes the value."""
    if field.is_required() or field.default_factory is not None or field.default in (None, ""):
        return ""
    if field.annotation is bool:
        return "  [on]" if field.default else "  [off]"
    return f"  [{field.default}]"


def load(
    settings: type[_Settings], flags: dict[str, Any], *, files: tuple[str, ...] = ()
) -> _Settings:
    """Build settings from flags, the environment, and env `files`, in this order of precedence.

    Raises:
        click.UsageError: a value is bad; the text names the setting and the value.
    """
    set_flags = {name: value for name, value in flags.items() if value is not None}
    try:
        return settings(_env_file=files, **set_flags)
    except ValidationError as error:
        raise click.UsageError(_explain(settings, error)) from None


def _explain(settings: type[BaseSettings], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if not name:
            lines.append(message)
        elif problem["type"] == "missing":
            lines.append(
                f"{PREFIX}{name.upper()} is not set: {settings.model_fields[name].description}"
            )
        elif settings.model_fields[name].annotation in (SecretStr, SecretStr | None):
            lines.append(f"{PREFIX}{name.upper()}: {message}")
        else:
            shown = _CREDENTIALS.sub("…@", str(problem["input"]))
            lines.append(f"{PREFIX}{name.upper()} is {shown!r}: {message}")
    return "\n".join(lines)
