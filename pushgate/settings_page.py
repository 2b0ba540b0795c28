"""docs/settings.md, written from the settings classes: `python -m pushgate.settings_page`.

A section a class, in the order in which the commands name the classes; a row a field. Where a class
defines a setting anew (`pushgate dev` has its own defaults), the setting has a second row.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Final, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from pushgate.options import PREFIX
from pushgate.settings import COMMAND_SETTINGS

_HEAD: Final = """\
# Settings

Written by `make settings` from the settings classes; a test compares this page with the code.

A setting is a variable and a flag: `PUSHGATE_KAFKA_TOPICS` and `--kafka-topics`. A flag counts
before the variable. A bad value stops the start, with a message that names the setting and the
value. A setting that is on or off is a flag without a value (`--log-json`, `--no-log-json`) and a
variable of `true` or `false`. How settings work together is in [operations.md](operations.md).
"""
_TABLE_HEAD: Final = "| variable | commands | values | default | meaning |\n|---|---|---|---|---|\n"
#: Names of numbers' types, for settings without bounds.
_TYPES: Final[Mapping[type, str]] = {int: "a whole number", float: "a number", str: "text"}
#: Words for bounds, by pydantic's names.
_BOUNDS: Final[Mapping[str, str]] = {"ge": "from", "gt": "above", "le": "to"}
#: Characters with a meaning in Markdown's text or tables.
_ESCAPED: Final = str.maketrans({"*": r"\*", "|": r"\|", "<": r"\<"})


def page() -> str:
    """Return the text of docs/settings.md."""
    return "\n".join([_HEAD, *(_section(settings) for settings in _classes())])


def _classes() -> Iterator[type[BaseSettings]]:
    """Yield every class with settings, base classes first."""
    seen: set[type[BaseSettings]] = set()
    for settings in COMMAND_SETTINGS.values():
        for part in reversed(settings.__mro__):
            if issubclass(part, BaseSettings) and _own_fields(part) and part not in seen:
                seen.add(part)
                yield part


def _own_fields(settings: type[BaseSettings]) -> list[str]:
    """Return the names of the settings that a class defines, without inherited ones."""
    return [name for name in inspect.get_annotations(settings) if name in settings.model_fields]


def _section(settings: type[BaseSettings]) -> str:
    name = settings.__name__.removesuffix("Settings")
    rows = "".join(_row(settings, name) for name in _own_fields(settings))
    return f"## {name}\n\n{settings.__doc__}\n\n{_TABLE_HEAD}{rows}"


def _row(settings: type[BaseSettings], name: str) -> str:
    field = settings.model_fields[name]
    cells = (
        f"`{PREFIX}{name.upper()}`",
        ", ".join(_commands(settings, name)),
        _values(field),
        _default(field),
        str(field.description).translate(_ESCAPED),
    )
    return f"| {' | '.join(cells)} |\n"


def _commands(settings: type[BaseSettings], name: str) -> list[str]:
    """Return the commands for which this class defines the setting."""
    return [
        command for command, whole in COMMAND_SETTINGS.items() if _definer(whole, name) is settings
    ]


def _definer(whole: type[BaseSettings], name: str) -> type | None:
    """Return the class whose definition of a setting counts for a command."""
    return next((part for part in whole.__mro__ if name in inspect.get_annotations(part)), None)


def _values(field: FieldInfo) -> str:
    """Return the values of a setting, as far as type and bounds say."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kind = kinds[0] if kinds and get_origin(field.annotation) is not Literal else field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if kind is SecretStr:
        return "a secret"
    if kind is bool:
        return "`true`, `false`"
    return _bounds(field) or _TYPES[kind]  # type: ignore[index]


def _bounds(field: FieldInfo) -> str:
    said = [
        f"{word} {getattr(bound, name):,}"
        for bound in field.metadata
        for name, word in _BOUNDS.items()
        if hasattr(bound, name)
    ]
    return " ".join(said)


def _default(field: FieldInfo) -> str:
    """Return a default as a variable would have it; "required" where the start needs a value."""
    if field.is_required():
        return "required"
    if field.default_factory is not None or field.default in (None, ""):
        return "–"
    if field.annotation is bool:
        return f"`{str(field.default).lower()}`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


if __name__ == "__main__":
    sys.stdout.write(page())
