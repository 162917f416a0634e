"""Pieces of HTML that the sections share."""

from collections.abc import Iterable, Sequence


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """HTML table of cells in HTML; `numeric` columns are aligned to the right."""

    def line(tag, cells):
        return "".join(f"<{tag}{' class=n' * (k in numeric)}>{cell}</{tag}>" for k, cell in enumerate(cells))

    lines = [*([line("th", headings)] if headings else []), *(line("td", row) for row in rows)]
    return f"<div class='wide'><table>{''.join(f'<tr>{cells}</tr>' for cells in lines)}</table></div>"


def counted(count: int, noun: str = "", plural: str = "") -> str:
    """Count with spaces between thousands, and a noun in the singular or plural."""
    digits = f"{count:,}".replace(",", "\u202f")
    return f"{digits} {noun if count == 1 else plural or f'{noun}s'}" if noun else digits
