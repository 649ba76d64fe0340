"""Builds HTML elements. Plain strings are escaped, `Html` is not."""

import html as html_lib
from collections.abc import Iterable, Sequence

__all__ = [
  'Html',
  'collapse_after',
  'details',
  'element',
  'escape',
  'figure',
  'join',
  'note',
  'paragraph',
  'table',
  'tag',
]


class Html(str):
  """A string of HTML, which is not escaped."""


def escape(value: object) -> Html:
  """Returns a value as escaped HTML; `Html` is returned unchanged."""
  if isinstance(value, Html):
    return value
  return Html(html_lib.escape(str(value)))


def join(parts: Iterable[object], separator: str = '') -> Html:
  """Joins the parts except those that are None or ''."""
  kept = (part for part in parts if part not in (None, ''))
  return Html(separator.join(escape(part) for part in kept))


def element(tag: str, *children: object, **attributes: object) -> Html:
  """Returns <tag ...>children</tag>.

  Args:
    tag: the name of the element.
    *children: text or `Html`.
    **attributes: `class_` becomes class, `data_label` becomes data-label;
      attributes that are None are omitted.
  """
  given = ''.join(
    f' {name.rstrip("_").replace("_", "-")}="{html_lib.escape(str(value))}"'
    for name, value in attributes.items()
    if value is not None
  )
  return Html(f'<{tag}{given}>{join(children)}</{tag}>')


def paragraph(*children: object, **attributes: object) -> Html:
  """Returns a paragraph; see `element`."""
  return element('p', *children, **attributes)


def tag(word: str, kind: str = '') -> Html:
  """Returns a word with an outline.

  Args:
    word: such as 'transductive' or 'confirmed'.
    kind: 'good', 'bad', 'transductive', 'inductive', or '' for gray.
  """
  return element('span', word, class_=f'tag {kind}'.strip())


def note(text: object, command: str = '') -> Html:
  """Returns one line about missing data, with the command that creates it."""
  code = element('code', command) if command else ''
  return paragraph(text, ' ' if command else '', code, class_='note')


def table(
  columns: Sequence[str],
  rows: Iterable[Sequence[object]],
  *,
  caption: object = '',
  numbers: Sequence[int] = (),
  stack: bool = True,
) -> Html:
  """Returns a table.

  Args:
    columns: the column names.
    rows: as many cells each, text or `Html`; the first cell is a row header.
    caption: text above the table.
    numbers: indices of the columns that are right-aligned.
    stack: show each row as a list on a narrow screen.
  """

  def cell(number, value):
    class_ = 'n' if number in numbers else None
    value = element('span', value)
    label = {'class_': class_, 'data_label': columns[number]}
    if number == 0:
      return element('th', value, scope='row', **label)
    return element('td', value, **label)

  head = (
    element('th', name, scope='col', class_='n' if i in numbers else None)
    for i, name in enumerate(columns)
  )
  body = (
    element('tr', *(cell(i, value) for i, value in enumerate(row)))
    for row in rows
  )
  return element(
    'table',
    element('caption', caption) if caption else '',
    element('thead', element('tr', *head)),
    element('tbody', *body),
    class_='stack' if stack else None,
  )


def figure(image: Html, caption: object, kind: str = 'plot') -> Html:
  """Returns an image with a caption below it; `kind` is its CSS class."""
  return element('figure', image, element('figcaption', caption), class_=kind)


def details(summary: object, *children: object) -> Html:
  """Returns a collapsed section with a visible summary."""
  return element('details', element('summary', summary), *children)


def collapse_after(num_open: int, parts: Sequence[tuple[str, Html]]) -> Html:
  """Returns (title, content) parts, all but the first `num_open` collapsed.

  A single part is shown without its title.
  """
  if len(parts) == 1:
    return parts[0][1]
  return join(
    join([element('h3', title), content])
    if i < num_open
    else details(title, content)
    for i, (title, content) in enumerate(parts)
  )
