"""Pieces of HTML. What they are given is text unless it says `html`."""

import html as html_lib
from collections.abc import Iterable, Sequence


class Html(str):
  """Text that is HTML already, and is put in as it is."""


def escape(value: object) -> Html:
  """Any value as HTML; that which is HTML already is left alone."""
  if isinstance(value, Html):
    return value
  return Html(html_lib.escape(str(value)))


def join(parts: Iterable[object], between: str = '') -> Html:
  """The parts one after another; those that are None or '' are left out."""
  kept = (part for part in parts if part not in (None, ''))
  return Html(between.join(escape(part) for part in kept))


def element(tag: str, *children: object, **attributes: object) -> Html:
  """<tag ...>children</tag>.

  Args:
    tag: its name.
    *children: text or `Html`.
    **attributes: `class_` is class, `data_label` is data-label; those that are
      None are left out.
  """
  given = ''.join(
    f' {name.rstrip("_").replace("_", "-")}="{html_lib.escape(str(value))}"'
    for name, value in attributes.items()
    if value is not None
  )
  return Html(f'<{tag}{given}>{join(children)}</{tag}>')


def paragraph(*children: object, **attributes: object) -> Html:
  return element('p', *children, **attributes)


def tag(word: str, kind: str = '') -> Html:
  """A word with a line around it.

  Args:
    word: such as 'transductive' or 'confirmed'.
    kind: 'good', 'bad', 'transductive', 'inductive'; or '', in grey.
  """
  return element('span', word, class_=f'tag {kind}'.strip())


def note(text: object, command: str = '') -> Html:
  """One line on what is missing, with the command that makes it."""
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
  """A table.

  Args:
    columns: their names.
    rows: of as many cells each, text or `Html`; the first cell names the row.
    caption: what the table says.
    numbers: the columns whose cells are aligned at the right.
    stack: whether each row becomes a list of its own on a narrow screen.
  """

  def cell(number, value):
    mark = 'n' if number in numbers else None
    label = columns[number]
    if not number:
      return element(
        'th', element('span', value), scope='row', class_=mark, data_label=label
      )
    return element('td', element('span', value), class_=mark, data_label=label)

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


def figure(picture: Html, caption: object, kind: str = 'plot') -> Html:
  """A picture with the words below it."""
  return element('figure', picture, element('figcaption', caption), class_=kind)


def details(summary: object, *children: object) -> Html:
  """What is folded away until it is asked for."""
  return element('details', element('summary', summary), *children)


def folded(parts: Sequence[tuple[str, Html]], most: int) -> Html:
  """The first parts under headings, those beyond `most` folded away.

  A single part needs no heading.
  """
  if len(parts) == 1:
    return parts[0][1]
  return join(
    join([element('h3', title), html]) if i < most else details(title, html)
    for i, (title, html) in enumerate(parts)
  )
