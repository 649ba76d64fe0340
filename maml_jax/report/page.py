"""The HTML report of several workdirs, a single self-contained file.

    python main.py --mode=report WORKDIR... --output FILE

Figures are inline; a folder next to the page has them as PNG files as well.
"""

import functools
import io
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

import maml_jax
from maml_jax.evaluation import statistics
from maml_jax.experiment import formatting as setup_formatting
from maml_jax.report import (
  classes,
  figures,
  formatting,
  run_groups,
  style,
  tables,
  task_plots,
  tasks,
)
from maml_jax.report.runs import read_run
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import oserror_as_user_error, write_text

__all__ = ['TableSection', 'save_png', 'write_report']

# Templates may call the public functions of these modules.
MODULES = [classes, figures, formatting, run_groups, statistics]
MODULES += [setup_formatting, tables, task_plots, tasks]
NO_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))


class TableSection(NamedTuple):
  """A table; its name in the navigation, and the text above it.

  Cells are text, or `Markup`, which is not escaped.
  """

  name: str
  text: str
  columns: Sequence[str]
  rows: Sequence[Sequence[object]]


@matplotlib.rc_context(style.RC)
def write_report(
  path: str | os.PathLike | None,
  workdirs: Sequence[str | os.PathLike],
  *,
  title: str = '',
  first_section: TableSection | None = None,
) -> pathlib.Path:
  """Writes the report, and its figures as PNG files to NAME_pictures/.

  Args:
    path: the file to write, which is returned; default report.html in the
      workdir if there is only one, otherwise in the current directory.
    workdirs: directories with runs, evaluations or both. Runs that differ only
      in the seed are combined.
    title: default the names of the runs.
    first_section: is shown above the summary.

  Raises:
    UserError: a workdir contains no run, or a file cannot be written.
  """
  if not workdirs:
    raise UserError('--mode=report needs at least one WORKDIR')
  distinct = {pathlib.Path(w).resolve(): w for w in workdirs}
  found = [read_run(workdir) for workdir in distinct.values()]
  groups = run_groups.group_runs(found)
  folder = found[0].path if len(found) == 1 else pathlib.Path()
  path = pathlib.Path(path or folder / 'report.html')
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('maml_jax.report'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    extensions=['jinja2.ext.do'],
  )
  for module in MODULES:
    environment.globals |= {x: getattr(module, x) for x in module.__all__}
  pictures = path.with_name(f'{path.stem}_pictures')
  environment.globals['save'] = functools.partial(save_png, pictures)
  environment.globals['to_svg'] = _to_svg
  with oserror_as_user_error(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    macros = vars(environment.get_template('sections.html').module)
    sections = [(name, f(groups)) for name, f in macros['SECTIONS']]
    html = environment.get_template('page.html').render(
      first_section=first_section,
      title=title or ', '.join(group.name for group in groups),
      sections=[part for part in sections if part[1].strip()],
      palette=style.PALETTE,
      version=maml_jax.__version__,
    )
    write_text(path, html)
  return path


def save_png(folder: pathlib.Path, name: str, figure: Figure) -> None:
  """Writes FOLDER/NAME.png, and creates the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  figure.savefig(folder / f'{name}.png', facecolor='white')


def _to_svg(figure: Figure, alt: str) -> Markup:
  """Returns a figure as an SVG element; its colors become CSS variables."""
  file = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': alt}):  # makes ids unique
    figure.savefig(file, format='svg', transparent=True, metadata=NO_METADATA)
  _, _, svg = file.getvalue().partition('<svg ')
  svg = re.sub(r'<g id="[^"]*"', '<g', svg)
  svg = re.sub(r'<[^>]*>', _round_coordinates, svg)
  for color, (light, _) in style.PALETTE.items():
    svg = svg.replace(light, f'var(--{color})')
  return Markup('<svg role="img" aria-label="{}" ').format(alt) + Markup(svg)


def _round_coordinates(tag: re.Match) -> str:
  """Rounds the numbers of an SVG tag; the text between tags is kept."""
  return re.sub(r'-?\d+\.\d{2,}', lambda m: f'{float(m[0]):.2f}', tag[0])
