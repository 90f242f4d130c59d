# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Figures as text, Markdown tables and tables on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(text: str, bounds: Sequence[float] | None, scale: float = 1.0) -> str:
    return text if bounds is None else f"{text} [{scale * bounds[0]:.1f}, {scale * bounds[1]:.1f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars and line breaks inside cells are made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 2) -> None:
    """The same table on the terminal; columns after the first ``text_columns`` are set flush right."""
    table = Table(title=title, title_justify="left")
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position < text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # a hypothesis may look like markup
    Console().print(table)
