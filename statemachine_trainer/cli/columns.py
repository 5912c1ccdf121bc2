"""Tables for the terminal that keep what matters in a narrow one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

_GAP = "  "
_INDENT = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        cells: One text for each row.
        right: Whether they stand at the right, as numbers do.
        spare: 0 if it always stays. Of the others, those with the highest number are left out first.
    """

    title: str
    cells: Sequence[str]
    right: bool = False
    spare: int = 0

    @property
    def width(self) -> int:
        """Columns of the terminal that it takes."""
        return max(cell_len(one) for one in (self.title, *self.cells))

    def texts(self) -> list[str]:
        """The head and the cells, all of the same width."""
        return [self._padded(one) for one in (self.title, *self.cells)]

    def _padded(self, text: str) -> str:
        blank = " " * (self.width - cell_len(text))
        return blank + text if self.right else text + blank


def lay_out(
    columns: Sequence[Column],
    title: str,
    rest: Sequence[Sequence[str]],
    *,
    width: int,
    styles: Sequence[str] = (),
) -> Iterator[Text]:
    """Yield the lines of a table.

    The first column, names, is never cut. If it leaves too little room for the others, each name has a line of
    its own. The last column holds as many whole items as fit, and the number of those that do not.

    Args:
        columns: The columns, without the last.
        title: Head of the last column.
        rest: The items of the last column, for each row.
        width: Columns of the terminal.
        styles: A style for each row.
    """
    least = max((cell_len(_fitting(items, 0)) for items in (*rest, [title])), default=0)
    always = [one for one in columns if not one.spare]
    stacked = _width(always, least) > width
    kept = always[1:] if stacked else always
    room = width - len(_INDENT) if stacked else width
    for one in sorted((c for c in columns if c.spare), key=lambda c: c.spare):
        if _width([*kept, one], least) <= room:
            kept.append(one)
    kept.sort(key=columns.index)
    left = max(0, room - _width(kept, 0))
    last = [title, *(_fitting(items, left) for items in rest)]
    rows = [_GAP.join(texts) for texts in zip(*(c.texts() for c in kept), last, strict=True)]
    names = [columns[0].title, *columns[0].cells]
    looks = ["bold", *(styles or [""] * len(rest))]
    for name, row, style in zip(names, rows, looks, strict=True):
        if stacked:
            yield Text(name, style=style)
        yield Text((_INDENT if stacked else "") + row.rstrip(), style=style)


def _width(columns: Sequence[Column], last: int) -> int:
    return sum(one.width + len(_GAP) for one in columns) + last


def _fitting(items: Sequence[str], room: int) -> str:
    """Return the first items as far as they fit, but always one, and how many more there are."""
    for count in range(len(items), 0, -1):
        more = len(items) - count
        text = _GAP.join([*items[:count], *([f"(+{more} more)"] if more else [])])
        if count == 1 or cell_len(text) <= room:
            return text
    return ""
