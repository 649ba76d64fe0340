"""The HTML report of several workdirs, a single self-contained file.

    python main.py --mode=report WORKDIR... --output FILE

Figures are inline; a folder next to the page has them as PNG files as well.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import matplotlib

import maml_jax
from maml_jax.report import figures, formatting, run_groups, style, tables
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.runs import read_run
from maml_jax.report.task_plots import draw_episode, label_letter
from maml_jax.report.tasks import image_url
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import oserror_as_user_error, write_text

__all__ = ['TableSection', 'write_report']


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
    path: the file to write; default report.html in the workdir if there is only
      one, otherwise in the current directory.
    workdirs: directories with runs, evaluations or both. Runs that differ only
      in the seed are combined.
    title: default the names of the runs.
    first_section: is shown above the summary.

  Returns:
    The path.

  Raises:
    UserError: a workdir contains no run, or a file cannot be written.
  """
  if not workdirs:
    raise UserError('--mode=report needs at least one WORKDIR')
  distinct = {pathlib.Path(w).resolve(): w for w in workdirs}
  found = [read_run(workdir) for workdir in distinct.values()]
  groups = run_groups.group_runs(found)
  if path is None:
    folder = found[0].path if len(found) == 1 else pathlib.Path()
    path = folder / 'report.html'
  path = pathlib.Path(path)
  with oserror_as_user_error(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = FigureWriter(path.with_name(f'{path.stem}_pictures'))
    environment = _environment(writer)
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


def _environment(writer: FigureWriter) -> jinja2.Environment:
  """Returns the templates, which escape all text, and what they may call."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('maml_jax.report'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    extensions=['jinja2.ext.do'],
  )
  for module in (figures, formatting, run_groups, tables):
    environment.globals |= {x: getattr(module, x) for x in module.__all__}
  environment.globals |= {
    'draw_episode': draw_episode,
    'embed': writer.embed,
    'image_url': image_url,
    'label_letter': label_letter,
    'save': writer.save,
  }
  return environment
