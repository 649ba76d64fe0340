"""The tasks with the best and the worst accuracy, with their images."""

from collections.abc import Sequence

from maml_jax.report import episodes, formatting, statistics
from maml_jax.report.episode_plot import draw_episode
from maml_jax.report.episodes import EvaluatedTask
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.markup import Html, element, join, note, paragraph
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  first_evaluations_with,
  has_predictions,
)
from maml_jax.report.runs import Evaluation
from maml_jax.utils.errors import UserError

__all__ = ['best_and_worst']

MAX_EPISODES = 8  # limits the size of the page


def best_and_worst(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns the best and the worst tasks of each run."""
  found = list(first_evaluations_with(run_groups, has_predictions).values())
  if not found:
    return Html()
  count = 2 if len(found) <= MAX_EPISODES // 4 else 1
  shown = found[: MAX_EPISODES // (2 * count)]
  omitted = ', '.join(group.name for group in found[len(shown) :])
  return join(
    [
      element('h2', 'Best and worst tasks'),
      paragraph(
        'Left of the line: support images of each class. Right of the line: '
        'query images with their predicted class. A tick and a solid frame '
        'mark correct predictions, a cross and a dashed frame wrong ones.'
      ),
      *(
        _tasks(group, figure_writer, count, named=len(found) > 1)
        for group in shown
      ),
      note(f'Omitted to limit the page size: {omitted}.') if omitted else '',
    ]
  )


def _tasks(
  group: EvaluationGroup, figure_writer: FigureWriter, count: int, *, named
) -> Html:
  """Returns `count` best and worst tasks of the first seed.

  Args:
    group: an evaluation with predictions.
    figure_writer: writes the figures.
    count: number of best and of worst tasks.
    named: whether to show the name of the evaluation.
  """
  evaluation, head = group.evaluations[0], ''
  if named:
    seed = f', seed {evaluation.result.get("seed", "?")}'
    head = element('h3', group.name, seed * (len(group.evaluations) > 1))
  accuracy, loss = (evaluation.arrays[n] for n in ('accuracy', 'loss'))
  best, worst = statistics.best_and_worst_tasks(accuracy, loss, count)
  dataset, class_names, reason = episodes.try_load_split(evaluation)
  if dataset is None:
    return join([head, note(reason)])
  try:
    tasks = episodes.rebuild_tasks(
      evaluation, dataset, class_names, best + worst
    )
  except UserError as error:
    return join([head, note(f'Tasks cannot be shown: {error}.')])
  labels = [f'best {i + 1}' for i in range(len(best))]
  labels += [f'worst {i + 1}' for i in range(len(worst))]
  shown = []
  for task, label in zip(tasks, labels, strict=True):
    shown.append(episodes.render_task(task, _title(evaluation, task, label)))
    name = f'task_{group.number}_{label.replace(" ", "")}'
    figure_writer.save(name, _draw_task(task))
  text = _describe(evaluation, num_queries=tasks[0].predicted.shape[1])
  return join(
    [
      head,
      paragraph(text, class_='fine'),
      element('div', *shown, class_='episodes'),
    ]
  )


def _draw_task(task: EvaluatedTask):
  return draw_episode(
    task.episode, task.predicted.ravel(), class_names=task.class_names
  )


def _title(evaluation: Evaluation, task: EvaluatedTask, label: str) -> Html:
  """Returns, for example, 'best 1 of 600: 96.00 % accuracy, task 17'."""
  accuracy = evaluation.arrays['accuracy']
  value = formatting.format_number('accuracy', accuracy[task.index])
  return join(
    [
      element('b', f'{label} of {len(accuracy):,}: {value}'),
      f' accuracy, task {task.index + 1}',
    ]
  )


def _describe(evaluation: Evaluation, num_queries: int) -> str:
  """Returns the setup, and how many query images are shown."""
  text = formatting.describe_setup(evaluation.result)
  if num_queries > episodes.MAX_QUERIES:
    text += f'; the first {episodes.MAX_QUERIES} query images are shown'
  return f'{text}.'
