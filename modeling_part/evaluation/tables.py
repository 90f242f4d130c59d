# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Figures as text, Markdown tables and tables on a terminal."""

import json
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..prompts_part import LANGUAGE_NAMES


def language_name(code: str) -> str:
    """English name and code: "French (fr)"; the code alone where there is no name."""
    name = LANGUAGE_NAMES.get(code) or LANGUAGE_NAMES.get(code.split("-", maxsplit=1)[0])
    return f"{name} ({code})" if name else code


def percent(value: float | None) -> str:
    """A share in percent, to one digit; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def number(value: float | None, digits: int = 1) -> str:
    """A figure rounded to `digits`; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(text: str, bounds: Sequence[float] | None, scale: float = 1.0) -> str:
    """A figure with its interval in brackets, where it has one."""
    return text if bounds is None else f"{text} [{scale * bounds[0]:.1f}, {scale * bounds[1]:.1f}]"


def plain_value(value: object) -> str:
    """A value of a JSON file: whole numbers in full, others to four significant digits, text as it is."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{int(value):,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# What means something in Markdown or HTML within a line: code, emphasis, tags, entities, links, formulas.
_MARKUP = re.compile(
    r"[\\`*<|~]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|!(?=\[)|&(?=#?\w+;)|:(?=//)|@(?=\w)|(?<=\bwww)\.|\$(?=\$)|(?<=\$)\$",
    re.IGNORECASE,
)


def markdown_cell(text: object) -> str:
    """Text on one line that shows as it is written, in Markdown and in a row of a Markdown table."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return _MARKUP.sub(lambda found: f"\\{found[0]}", line)


def markdown_code(text: object) -> str:
    """Text on one line that can stand between backticks."""
    return " ".join("".join(c if c.isprintable() and c != "`" else " " for c in str(text)).split())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what inside cells looks like markup, bars and line breaks included, is made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(markdown_cell, line))} |\n" for line in lines)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 2) -> None:
    """The same table on the terminal; columns after the first `text_columns` are set flush right."""
    # Names of runs and answers may look like markup.
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for position, name in enumerate(header):
        table.add_column(Text(name), justify="left" if position < text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def duration(seconds: float) -> str:
    """Such as "40 s", "14 min", "2 h 05 min", "3 d 04 h"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"
