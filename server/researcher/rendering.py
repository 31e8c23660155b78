"""How values look in a terminal and in a notebook: small tables of text, with everything escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import fill
from typing import Protocol, TypeVar

MAX_CELL = 60
MAX_LINE = 110


class HasRow(Protocol):
    """A value that can stand in a table."""

    def row(self) -> Mapping[str, str]:
        """Cells by the heading of their column."""


T = TypeVar("T", bound=HasRow)


class Listing(tuple[T, ...]):
    """Several values of one kind; shows itself as a table."""

    def __repr__(self) -> str:
        return text_table([one.row() for one in self]) if self else "(none)"

    def _repr_html_(self) -> str:
        return html_table([one.row() for one in self]) if self else "<p>(none)</p>"


def text_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same headings, in columns; what is long is cut, but in the last.

    >>> print(text_table([{"a": "1", "bc": "x"}, {"a": "234", "bc": "y"}]))
    a    bc
    1    x
    234  y
    """
    headings = list(rows[0])
    *cut, last = headings
    cells = [headings, *([*(_short(row[name]) for name in cut), row[last]] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(headings))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def html_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same headings, as an HTML table."""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row.values())}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_facts(title: str, facts: Mapping[str, str]) -> str:
    """Named facts under a title, one a line."""
    width = max(map(len, facts))
    lines = [title]
    for name, fact in facts.items():
        head = f"  {name.ljust(width)}  "
        lines.append(fill(fact, MAX_LINE, initial_indent=head, subsequent_indent=" " * len(head)))
    return "\n".join(lines)


def html_facts(title: str, facts: Mapping[str, str]) -> str:
    """Named facts under a title, as HTML."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(fact)}</td></tr>'
        for name, fact in facts.items()
    )
    return f"<p><b>{escape(title)}</b></p><table><tbody>{rows}</tbody></table>"


def _short(text: str) -> str:
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."
