"""
The examples of the documents run.

All Python blocks of one page share a namespace and run from top to bottom in an empty directory,
as if typed into `python -m asyncio`: a block may await. Warnings are errors, so an example that
leaves something open fails.
"""

import ast
import asyncio
import builtins
import dataclasses
import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import millrace
from millrace import LogSettings

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    page
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    if "```python\n" in page.read_text()
)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


async def in_loop(function: Callable[[], Any]) -> None:
    """Call it, and await what it returns if the block awaits."""
    outcome = function()
    if inspect.iscoroutine(outcome):
        await outcome


def run_page(page: Path) -> int:
    text = page.read_text()
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    count = 0
    with asyncio.Runner() as runner:
        for match in BLOCK.finditer(text):
            # Empty lines in front give a failure the line number of the page.
            source = "\n" * text.count("\n", 0, match.start(1)) + match[1]
            code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            function = types.FunctionType(code, namespace)
            if "asyncio.run(" in match[1]:
                function()
            else:
                runner.run(in_loop(function))
            count += 1
    return count


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every Python block of the page runs, in order, without a warning.
    monkeypatch.chdir(tmp_path)
    assert run_page(page) > 0


def test_a_broken_example_is_noticed(tmp_path: Path) -> None:
    # The runner fails on a wrong example, before and after an await, with the line of the page.
    page = tmp_path / "page.md"
    for body in ["assert 1 == 2", "import asyncio\nawait asyncio.sleep(0)\nassert 1 == 2"]:
        page.write_text(f"# Page\n\n```python\n{body}\n```\n")
        with pytest.raises(AssertionError) as caught:
            run_page(page)
        assert caught.traceback[-1].lineno == 3 + body.count("\n")


def test_every_page_that_shows_python_is_found() -> None:
    # The pattern sees every block that a reader sees.
    assert len(PAGES) >= 3
    for page in PAGES:
        text = page.read_text()
        assert len(BLOCK.findall(text)) == text.count("```python")


def test_the_table_of_settings_is_complete() -> None:
    # Every setting stands in the table with its real default, and nothing else does.
    text = (ROOT / "docs/operating.md").read_text()
    section = text.split("\n## Settings\n")[1].split("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)(?:=?)` \| ([^|]+?) \|", section, re.MULTILINE))
    assert table == {field.name: shown(field.default) for field in dataclasses.fields(LogSettings)}


def shown(default: object) -> str:
    if isinstance(default, str):
        return f'`"{default}"`'
    if isinstance(default, int) and default >= 1 << 20:
        return f"{default >> 20} MiB"
    return f"{default:_}".replace("_", " ") if isinstance(default, int) else str(default)


def test_the_errors_that_are_named_exist() -> None:
    # A page sends nobody to catch a class that is not there.
    named = set(re.findall(r"`(\w+(?:Error|Timeout))`", " ".join(p.read_text() for p in PAGES)))
    ours = {name for name in dir(millrace) if name.endswith(("Error", "Timeout"))}
    assert {name for name in named if not hasattr(builtins, name)} <= ours
