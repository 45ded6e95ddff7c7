"""How commands speak: results on stdout, progress and complaints on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

Bar = Callable[[str, int | None], AbstractContextManager[Callable[..., None]]]
"""Opens a progress bar, as ``progress`` does: ``with bar("what", total) as advance``."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""Characters that command a terminal, to what is shown instead: texts may come from anywhere."""


def say(line: str = "") -> None:
    """One line of result."""
    _write(line.translate(_CONTROLS))


def say_json(value: Any) -> None:
    """One JSON object on one line, for machines."""
    try:
        line = msgspec.json.encode(value, enc_hook=str).decode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        line = json.dumps(msgspec.to_builtins(value, enc_hook=str))
    _write(line)


def complain(line: str) -> None:
    """One line that is no result."""
    sys.stderr.write(line.translate(_CONTROLS) + "\n")


@contextmanager
def complaints_of(package: str) -> Iterator[None]:
    """What a package's log warns of, on stderr as one line each."""
    handler, logger = logging.StreamHandler(), logging.getLogger(package)
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people; every cell is printed as it is, square brackets too."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title) if title else None, title_justify="left")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell.translate(_CONTROLS)) for cell in row))
    console = Console()
    with console.capture() as lines:  # rich itself exits with 1 when the reader has seen enough
        console.print(drawn)
    _write(lines.get().rstrip("\n"))


def _write(lines: str) -> None:
    sys.stdout.write(lines + "\n")
    sys.stdout.flush()


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, with the time left; silent where stderr is no terminal.

    Yields:
        ``advance()`` for one step more, or ``advance(completed=n, total=m)``.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def advance(*, completed: int | None = None, total: int | None = None) -> None:
            bar.update(task, advance=1 if completed is None else None, completed=completed, total=total)

        yield advance
