"""HTML as values: text stays text until `element` makes markup of it, so that no name can be taken for code."""

import base64
from collections.abc import Collection, Sequence
from html import escape

VOID = ("meta", "img", "line", "rect", "path", "circle", "polyline")  # elements that hold nothing


class Html(str):
    """Markup that is finished. Any other string is text."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. `class_` is class, `font_size` is font-size; an attribute that is None or False is left out."""
    held = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{held}>" if name in ("meta", "img") else f"<{name}{held}/>")
    return Html(f"<{name}{held}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """The children one after the other; text is escaped, None left out, a list taken apart."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, (list, tuple)):
            parts.append(join(*child))
        elif child is not None:
            parts.append(child if isinstance(child, Html) else escape(str(child)))
    return Html("".join(parts))


def image(png: bytes, alt: str, **attributes: object) -> Html:
    """A PNG that is part of the page."""
    return element("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=alt, **attributes)


def table(
    caption: str,
    heads: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Collection[int] = (),
    row_heads: bool = True,
    class_: str | None = None,
) -> Html:
    """A table with a caption and heads, in a frame that scrolls where the page is too narrow for it.

    The columns in `numbers` are set to the right. A cell that is a <td> or <th> already is taken as it is.
    """

    def side(column: int) -> str | None:
        return "number" if column in numbers else None

    body = []
    for row in rows:
        cells = []
        for at, cell in enumerate(row):
            if isinstance(cell, Html) and cell.startswith(("<td", "<th")):
                cells.append(cell)
            elif at == 0 and row_heads:
                cells.append(element("th", cell, scope="row"))
            else:
                cells.append(element("td", cell, class_=side(at)))
        body.append(element("tr", cells))
    top = [element("th", head, scope="col", class_=side(at)) for at, head in enumerate(heads)]
    held = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", top)),
        element("tbody", body),
        class_=class_,
    )
    return element("div", held, class_="scroll", tabindex=0, role="region", aria_label=caption)
