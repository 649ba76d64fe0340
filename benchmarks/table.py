"""Tables that are printed row by row while the rows are measured."""


class RangeFormat(str):
  """A format spec for columns that show `median (min..max)`."""


class Table:
  """A table of medians, printed as it is measured.

  The name of a row is printed when its measurement starts, and its values when
  it finishes. The header is printed at once.

  Args:
    columns: name -> format spec of the values.
    names: the names of the rows to come.
  """

  def __init__(self, columns: dict[str, str], names: list[str]):
    self._columns = columns
    self._name_width = max(map(len, names))
    header = ''.join(f'  {self._pad(name, name)}' for name in columns)
    print(f'{"":{self._name_width}}{header}', flush=True)

  def start_row(self, name: str) -> None:
    """Prints the name of a row."""
    print(f'{name:{self._name_width}}', end='', flush=True)

  def finish_row(self, values: dict) -> None:
    """Prints the values of the current row; missing ones are left blank."""
    cells = ''.join(
      f'  {self._pad(name, format_cell(name, spec, values))}'
      for name, spec in self._columns.items()
    )
    print(cells.rstrip(), flush=True)

  def fail_row(self, error: Exception) -> None:
    """Prints the first line of an error in place of values."""
    print(f'  failed: {str(error).splitlines()[0]}', flush=True)

  def _pad(self, name: str, text: str) -> str:
    width = 26 if isinstance(self._columns[name], RangeFormat) else 8
    return text.rjust(max(len(name), width))


def format_cell(name: str, spec: str, values: dict) -> str:
  """Returns '1.1 (1.0..1.2)' or '1.1'; '' if the value is missing."""
  if name not in values:
    return ''
  text = format(values[name], spec)
  if not isinstance(spec, RangeFormat):
    return text
  low, high = (format(values[f'{name}_{end}'], spec) for end in ('min', 'max'))
  return f'{text} ({low}..{high})'
