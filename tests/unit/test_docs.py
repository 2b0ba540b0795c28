"""The Markdown pages: links lead somewhere, settings and flags exist, code blocks are well formed.

Not checked here: Java and Go beyond their syntax. What the pages' programs do is tried elsewhere:
tests/system/test_publishing.py (Python, Node, Java), tests/browser/test_getting_started.py (pages).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest
import yaml

from pushgate.cli import cli
from pushgate.environment import known_variables
from tests.support.markdown import ROOT, Block, Page, codes, pages

PAGES: Final = pages()
VARIABLE: Final = re.compile(r"(?<![A-Z_])PUSHGATE_[A-Z0-9_]*[A-Z0-9]\b")
#: What reads variables that are no setting of a command: HAProxy, nginx, the tests.
OTHER_READERS: Final = (
    ROOT / "deploy" / "haproxy" / "haproxy.cfg",
    ROOT / "deploy" / "nginx" / "nginx.conf.template",
    *(ROOT / "tests" / "support").glob("*.py"),
)
#: Texts that begin as a command line does, and are none.
NO_COMMANDS: Final = frozenset(
    {"pushgate is up", "pushgate call to a gateway, v1", "pushgate call to a processor, v1"}
)
SCRIPT: Final = re.compile(r"<script(?: type=\"module\")?>\n(.*?)</script>", re.DOTALL)
SUBSTITUTION: Final = re.compile(r"\$\(([^()]*)\)")
SEPARATORS: Final = frozenset({"|", "||", "&&", ";", "&", "(", ")"})
REDIRECTIONS: Final = re.compile(r"[<>]+&?")


def blocks(*languages: str) -> list[tuple[Page, Block]]:
    return [(p, b) for p in PAGES for b in p.blocks if b.language in languages]


def block_id(value: object) -> str:
    return value.name if isinstance(value, Page) else f"line-{getattr(value, 'line', value)}"


@pytest.mark.parametrize("page", PAGES, ids=block_id)
def test_every_link_leads_to_a_file_and_a_heading(page: Page) -> None:
    assert [target for target in page.links if not leads_somewhere(page, target)] == []


@pytest.mark.parametrize("page", PAGES, ids=block_id)
def test_every_setting_exists(page: Page) -> None:
    known = known_variables().union(*(variables(path) for path in OTHER_READERS))
    assert variables(page.path) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=block_id)
def test_every_command_and_flag_in_the_text_exists(page: Page) -> None:
    in_text = [code for line in page.prose for code in codes(line)]
    indented = [line.strip() for line in page.prose if line.startswith("    ")]
    texts = [text for text in in_text + indented if text not in NO_COMMANDS]
    assert [fault for text in texts for fault in faults_of_flags(text)] == []


@pytest.mark.parametrize("page", PAGES, ids=block_id)
def test_every_test_that_is_cited_exists(page: Page) -> None:
    cited = [c for line in page.prose for c in codes(line) if re.match(r"tests/\S+\.py", c)]
    assert [name for name in cited if not is_test(name)] == []


def test_every_code_block_is_of_a_language_that_is_checked() -> None:
    checked = {"python", "sh", "json", "yaml", "js", "html", "ts", "tsx", "java", "go"}
    others = {b.language for p in PAGES for b in p.blocks} - checked
    # No language: drawings, and what a program prints.
    assert others <= {""}


@pytest.mark.parametrize(("page", "block"), blocks("python"), ids=block_id)
def test_python_compiles(page: Page, block: Block) -> None:
    compile(block.text, f"{page.name}:{block.line}", "exec")


@pytest.mark.parametrize(("page", "block"), blocks("json"), ids=block_id)
def test_json_parses(page: Page, block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize(("page", "block"), blocks("yaml"), ids=block_id)
def test_yaml_parses(page: Page, block: Block) -> None:
    assert yaml.safe_load(block.text) is not None


@pytest.mark.parametrize(("page", "block"), blocks("sh"), ids=block_id)
def test_shell_parses_and_pushgate_takes_its_arguments(page: Page, block: Block) -> None:
    checked = subprocess.run(
        ["bash", "-n"], check=False, input=block.text, text=True, capture_output=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    for arguments in pushgate_commands(block.text):
        parse(arguments)


@pytest.mark.parametrize(("page", "block"), blocks("js", "html"), ids=block_id)
def test_javascript_parses(page: Page, block: Block, tmp_path: Path) -> None:
    scripts = SCRIPT.findall(block.text) if block.language == "html" else [block.text]
    if shutil.which("node") is None:
        pytest.skip("needs node: apt-get install nodejs")
    for number, script in enumerate(scripts):
        file = tmp_path / f"{number}.mjs"
        file.write_text(script)
        checked = subprocess.run(
            ["node", "--check", file], check=False, capture_output=True, text=True
        )
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(("page", "block"), blocks("go"), ids=block_id)
def test_go_parses_and_is_formatted(page: Page, block: Block) -> None:
    if shutil.which("gofmt") is None:
        pytest.skip("needs gofmt, which comes with Go")
    formatted = subprocess.run(
        ["gofmt"], check=False, input=block.text, text=True, capture_output=True
    )
    assert (formatted.stdout, formatted.stderr) == (block.text, "")


def output_of(*command: str, text: str = "") -> str:
    """Return all that a checker prints, errors too."""
    done = subprocess.run(
        command,
        check=False,
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout


def variables(path: Path) -> set[str]:
    return set(VARIABLE.findall(path.read_text()))


def leads_somewhere(page: Page, target: str) -> bool:
    """Whether a link's target is in another place, or is a file or folder here, and its heading."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return True
    file, _, anchor = target.partition("#")
    path = (page.path.parent / file).resolve() if file else page.path
    if path.is_relative_to(ROOT / "client") and not (ROOT / "client").exists():
        return True
    return path.exists() and (not anchor or anchor in Page(path).anchors)


def is_test(name: str) -> bool:
    """Whether a file of tests exists, and the test behind `::`."""
    file, _, test = name.partition("::")
    path = ROOT / file
    return path.is_file() and (not test or f"def {test}(" in path.read_text())


def pushgate_commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each run of `pushgate` in a shell script."""
    for script in [SUBSTITUTION.sub("", text), *SUBSTITUTION.findall(text)]:
        for line in script.replace("\\\n", " ").splitlines():
            yield from commands_of_line(line)


def commands_of_line(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in SEPARATORS:
            words.append(word)
            continue
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words and Path(words[0]).name == "pushgate":
            end = next((n for n, w in enumerate(words) if REDIRECTIONS.fullmatch(w)), len(words))
            yield words[1:end]
        words = []


def parse(arguments: list[str]) -> None:
    """Parse a command line of pushgate as the program would, and run nothing.

    Raises:
        click.UsageError: the command, a flag or a value is none.
    """
    if arguments[0] not in ("--version", "--help"):
        command_named(arguments[0]).make_context(arguments[0], arguments[1:])


def command_named(name: str) -> click.Command:
    context = click.Context(cli)
    command = cli.get_command(context, name)
    if command is None:
        raise click.UsageError(f"pushgate has no command {name!r}")
    return command


def faults_of_flags(code: str) -> Iterator[str]:
    """Yield commands and flags of `pushgate …` that do not exist; values may be placeholders."""
    for run in re.findall(r"(?:^|[ /(])pushgate ([a-z].*)", code):
        name, *words = re.split(r"[;|)]", run)[0].split()
        if cli.get_command(click.Context(cli), name) is None:
            yield f"pushgate {name}"
            continue
        known = {flag for option in command_named(name).params for flag in option.opts} | {"--help"}
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        yield from (f"pushgate {name} {flag}" for flag in flags if flag not in known)
