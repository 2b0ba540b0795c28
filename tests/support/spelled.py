"""Texts that the code can say, read from its syntax trees; `HOLE` for what an f-string puts in."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from tests.support.markdown import ROOT

HOLE: Final = "…"


def sources(*names: str) -> list[Path]:
    """Return Python files by their names from the project's root; of folders, all files in them."""
    paths = [ROOT / name for name in names]
    return [f for p in paths for f in (sorted(p.glob("*.py")) if p.is_dir() else [p])]


def said_in_calls(files: Iterable[Path], *names: str, at: int = 0) -> list[str]:
    """Return the texts that calls of these names have as argument number `at`."""
    return [
        text
        for tree in map(_parsed, files)
        for call in _calls(tree, names)
        if len(call.args) > at and (text := _text(call.args[at], tree)) is not None
    ]


def refused_in(files: Iterable[Path], *names: str) -> set[tuple[int, str]]:
    """Return status and text of calls of these names, `name(status, text)`, and of such pairs."""
    found = set()
    for tree in map(_parsed, files):
        pairs = [call.args[:2] for call in _calls(tree, names)]
        returns = (n.value for n in ast.walk(tree) if isinstance(n, ast.Return))
        pairs += [pair.elts[:2] for pair in returns if isinstance(pair, ast.Tuple)]
        for status, *texts in pairs:
            if isinstance(status, ast.Constant) and isinstance(status.value, int) and texts:
                text = _text(texts[0], tree)
                if text is not None:
                    found.add((status.value, text))
    return found


def said_in_returns(file: Path, function: str) -> list[str]:
    """Return the texts that a function returns, or puts into what it returns."""
    tree = _parsed(file)
    (found,) = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == function]
    returned = (r.value for r in ast.walk(found) if isinstance(r, ast.Return) and r.value)
    return [text for value in returned for text in _texts(value, tree)]


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), file)


def _calls(tree: ast.Module, names: Collection[str]) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            if (name.id if isinstance(name, ast.Name) else name) in names and node.args:
                yield node


def _texts(value: ast.AST, tree: ast.Module) -> Iterator[str]:
    """Yield the texts in an expression; of an f-string the whole, and the texts that it puts in."""
    if isinstance(value, ast.expr) and (text := _text(value, tree)) is not None:
        yield text
    for part in ast.iter_child_nodes(value):
        if not (isinstance(value, ast.JoinedStr) and isinstance(part, ast.Constant)):
            yield from _texts(part, tree)


def _text(argument: ast.expr, tree: ast.Module) -> str | None:
    """Return a string, also one that a constant of the module names; None for no string."""
    if isinstance(argument, ast.Constant):
        return argument.value if isinstance(argument.value, str) else None
    if isinstance(argument, ast.JoinedStr):
        parts = [_text(part, tree) or HOLE for part in argument.values]
        return "".join(parts)
    if isinstance(argument, ast.Name):
        constants = (line for line in tree.body if isinstance(line, ast.AnnAssign))
        named = [c.value for c in constants if ast.unparse(c.target) == argument.id and c.value]
        return _text(named[0], tree) if named else None
    return None
