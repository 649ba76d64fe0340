"""A table that is printed row by row, while the rows are measured."""


class Ranged(str):
  """The format of a column that shows `median (min..max)`."""


class Table:
  """A table of medians.

  A row appears when it begins, its numbers when it ends, so that one sees what
  is being measured.
  """

  def __init__(self, columns: dict[str, str], names: list[str]):
    """Prints the header.

    Args:
      columns: name -> format of its values.
      names: of the rows that will come.
    """
    self._columns = columns
    self._name_width = max(map(len, names))
    heads = ''.join(f'  {self._pad(name, name)}' for name in columns)
    print(f'{"":{self._name_width}}{heads}', flush=True)

  def begin(self, name: str) -> None:
    """Prints the name of a row."""
    print(f'{name:{self._name_width}}', end='', flush=True)

  def end(self, values: dict) -> None:
    """Prints its values; columns that it lacks stay empty."""
    cells = ''.join(
      f'  {self._pad(name, cell(name, form, values))}'
      for name, form in self._columns.items()
    )
    print(cells.rstrip(), flush=True)

  def fail(self, error: Exception) -> None:
    """Says in one line why there are no values."""
    print(f'  failed: {str(error).splitlines()[0]}', flush=True)

  def _pad(self, name, text):
    least = 26 if isinstance(self._columns[name], Ranged) else 8
    return text.rjust(max(len(name), least))


def cell(name: str, form: str, values: dict) -> str:
  """'1.1 (1.0..1.2)', '1.1', or '' if there is no such value."""
  if name not in values:
    return ''
  text = format(values[name], form)
  if not isinstance(form, Ranged):
    return text
  low, high = (format(values[f'{name}_{end}'], form) for end in ('min', 'max'))
  return f'{text} ({low}..{high})'
