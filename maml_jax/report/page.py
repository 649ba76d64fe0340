"""One HTML page of what lies in workdirs; it needs no other file.

    python main.py --mode=report WORKDIR... --output FILE

The pictures are inline, and lie as PNGs in a folder beside the page, too.
"""

import os
import pathlib
from collections.abc import Sequence

import maml_jax
from maml_jax.report import grids, markup, predictions, runs, sections, style
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.markup import Html, element, paragraph
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import write_text

# What the line of links calls each part, and the part.
PARTS = (
  ('Summary', sections.summary),
  ('Task by task', sections.single_tasks),
  ('Grid', grids.grid),
  ('Baselines', sections.baselines),
  ('Adaptation', sections.adaptation),
  ('Learning curves', sections.learning),
  ('Classes', predictions.classes),
  ('Best and worst', predictions.tasks),
  ('Fitted curves', predictions.regressions),
  ('All evaluations', sections.evaluations),
  ('Not measured', sections.missing),
  ('Sources', sections.provenance),
)

# Nothing is fetched, and nothing is run.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(
  path: str | os.PathLike | None,
  workdirs: Sequence[str | os.PathLike],
  *,
  title: str = '',
  extra_html: str = '',
  nav: str = '',
) -> pathlib.Path:
  """Writes the page, and its pictures as PNGs into FILE's NAME_pictures/.

  Args:
    path: of the page; by default report.html in the workdir if there is a
      single one, else in the directory where one is.
    workdirs: runs, evaluations or both; those that differ in their seed alone
      are drawn as one.
    title: by default the names of the runs.
    extra_html: what stands above the summary, such as a table by
      `markup.table`; it is put in as it is.
    nav: what the line of links calls it.

  Returns:
    The path.

  Raises:
    UserError: a workdir is none, or the page cannot be written.
  """
  if not workdirs:
    raise UserError('--mode=report needs at least one WORKDIR')
  distinct = {pathlib.Path(w).resolve(): w for w in workdirs}
  found = [runs.read_run(workdir) for workdir in distinct.values()]
  groups = runs.group_runs(found)
  if path is None:
    folder = found[0].path if len(found) == 1 else pathlib.Path()
    path = folder / 'report.html'
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    album = FigureWriter(path.with_name(f'{path.stem}_pictures'))
    made = [(name, part(groups, album)) for name, part in PARTS]
    parts = [(nav, Html(extra_html)), *made]
    title = title or ', '.join(group.name for group in groups)
    write_text(path, _document(title, [p for p in parts if p[1]]))
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}') from error
  return path


def _document(title: str, parts: Sequence[tuple[str, Html]]) -> str:
  links, body = [], []
  for i, (name, html) in enumerate(parts):
    if name:
      links.append(element('a', name, href=f'#part{i}'))
    body.append(element('section', html, id=f'part{i}'))
  head = (
    '<meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f'{element("title", title)}<style>{style.sheet()}</style>'
  )
  about = f'Drawn by maml_jax {maml_jax.__version__}.'
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
