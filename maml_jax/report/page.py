"""The HTML report of several workdirs, a single self-contained file.

    python main.py --mode=report WORKDIR... --output FILE

Figures are inline; a folder next to the page has them as PNG files as well.
"""

import os
import pathlib
from collections.abc import Sequence

import maml_jax
from maml_jax.report import markup, style
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.markup import Html, element, paragraph
from maml_jax.report.run_groups import group_runs
from maml_jax.report.runs import read_run
from maml_jax.report.sections.baselines import baselines
from maml_jax.report.sections.best_and_worst import best_and_worst
from maml_jax.report.sections.classes import classes
from maml_jax.report.sections.curves import adaptation, learning
from maml_jax.report.sections.evaluations import (
  evaluations,
  missing,
  provenance,
)
from maml_jax.report.sections.grid import grids
from maml_jax.report.sections.learned_rates import learned_rates
from maml_jax.report.sections.regressions import regressions
from maml_jax.report.sections.single_tasks import single_tasks
from maml_jax.report.sections.summary import summary
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import oserror_as_user_error, write_text

__all__ = ['write_report']

# The sections of the page with their names in the navigation.
SECTIONS = (
  ('Summary', summary),
  ('Results per task', single_tasks),
  ('Grid', grids),
  ('Baselines', baselines),
  ('Adaptation', adaptation),
  ('Learning curves', learning),
  ('Learned rates', learned_rates),
  ('Classes', classes),
  ('Best and worst tasks', best_and_worst),
  ('Fitted curves', regressions),
  ('All evaluations', evaluations),
  ('Missing results', missing),
  ('Provenance', provenance),
)

# The page loads no other file and runs no script.
CONTENT_SECURITY_POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
)


def write_report(
  path: str | os.PathLike | None,
  workdirs: Sequence[str | os.PathLike],
  *,
  title: str = '',
  extra_html: str = '',
  nav: str = '',
) -> pathlib.Path:
  """Writes the report, and its figures as PNG files to NAME_pictures/.

  Args:
    path: the file to write; default report.html in the workdir if there is only
      one, otherwise in the current directory.
    workdirs: directories with runs, evaluations or both. Runs that differ only
      in the seed are combined.
    title: default the names of the runs.
    extra_html: HTML to insert above the summary, such as a `markup.table`.
    nav: the name of `extra_html` in the navigation.

  Returns:
    The path.

  Raises:
    UserError: a workdir contains no run, or a file cannot be written.
  """
  if not workdirs:
    raise UserError('--mode=report needs at least one WORKDIR')
  distinct = {pathlib.Path(w).resolve(): w for w in workdirs}
  found = [read_run(workdir) for workdir in distinct.values()]
  run_groups = group_runs(found)
  if path is None:
    folder = found[0].path if len(found) == 1 else pathlib.Path()
    path = folder / 'report.html'
  path = pathlib.Path(path)
  with oserror_as_user_error(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_writer = FigureWriter(path.with_name(f'{path.stem}_pictures'))
    parts = [(nav, Html(extra_html))]
    parts += [(name, f(run_groups, figure_writer)) for name, f in SECTIONS]
    title = title or ', '.join(group.name for group in run_groups)
    write_text(path, _document(title, [part for part in parts if part[1]]))
  return path


def _document(title: str, parts: Sequence[tuple[str, Html]]) -> str:
  """Returns the HTML document.

  Args:
    title: of the page.
    parts: name in the navigation, '' for none, and content.
  """
  links, body = [], []
  for i, (name, content) in enumerate(parts):
    if name:
      links.append(element('a', name, href=f'#part{i}'))
    body.append(element('section', content, id=f'part{i}'))
  head = (
    '<meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" '
    f'content="{CONTENT_SECURITY_POLICY}">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f'{element("title", title)}<style>{style.style_sheet()}</style>'
  )
  about = f'Created by maml_jax {maml_jax.__version__}.'
  return markup.join(
    [
      Html(f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>'),
      element(
        'header',
        paragraph('maml_jax report', class_='kicker'),
        element('h1', title),
        element('nav', *links),
      ),
      element('main', *body),
      element('footer', about),
      Html('</body></html>\n'),
    ]
  )
