"""Pictures of a run that has just been trained, as `--mode=demo` draws them."""

import pathlib
import textwrap

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, PercentFormatter

from maml_jax import data
from maml_jax.data.episodes import split_episode
from maml_jax.experiment import (
  checkpoint,
  metrics,
  metrics_log,
  setup,
  transfer,
)
from maml_jax.experiment.checkpoint import Checkpoint
from maml_jax.experiment.task_source import eval_task_indices, eval_tasks
from maml_jax.report.figures import style_axes
from maml_jax.report.style import INK, MUTED, SERIES
from maml_jax.types import Array, Batch, Episode
from maml_jax.utils.errors import UserError

BLUE, VERMILION, GREY = *SERIES[:2], MUTED
MAX_IMAGES = 10  # of one class, in the support set and in the query set


def draw_demo(config, workdir: str) -> None:
  """Draws the learning curves of a run and what it answers in its evaluation.

  Args:
    config: its `eval` section says which tasks; the rest is that of the run.
    workdir: the run.

  Raises:
    UserError: the run has no metrics or no checkpoint.
  """
  saved = checkpoint.load(workdir, config.eval.checkpoint)
  print(f'checkpoint  {saved.path}')
  print(f'curves      {plot_curves(workdir)}')
  if config.data.name in data.REGRESSIONS:
    path = pathlib.Path(workdir) / 'regression.png'
    print(f'test tasks  {plot_regression(path, config, saved)}')
    return
  episode, logits, names = first_task(config, saved)
  path = pathlib.Path(workdir) / 'episode.png'
  print(f'a test task {plot_episode(path, episode, logits, names)}')


def first_task(config, saved: Checkpoint) -> tuple[Episode, Array, list[str]]:
  """Adapts a checkpoint to the first task of its evaluation.

  Returns:
    The task, logits [N, W] for its query images, and the names of its classes.
  """
  phase = setup.eval_phase(config)
  dataset = setup.load_split(config, phase)
  (positions,), (key,) = eval_task_indices(dataset, phase, 1)
  episode = setup.phase_transform(config, phase)(
    key, split_episode(dataset.images[positions], shots=phase.shots)
  )
  learner = setup.phase_learner(config, phase)

  @jax.jit
  def answer(params, stats):
    adapted, stats, _ = learner.adapt(params, stats, episode.support)
    return learner.predict(adapted, stats, episode.query.inputs)

  with setup.matmul_precision(config):
    logits = answer(
      *transfer.transfer_params(learner, saved.params, saved.stats)
    )
  names = data.class_names(
    config.data.name, phase.split, config.data.root or None
  )
  # Images lie in order of class.
  classes = np.searchsorted(dataset.size.cumsum(), positions[:, 0], 'right')
  return episode, logits, [names[c] for c in classes]


def plot_curves(workdir: str) -> pathlib.Path:
  """Draws accuracy and loss against the meta-iteration.

  Args:
    workdir: a run, with its `metrics.jsonl` (see `metrics`).

  Returns:
    The path of the picture, WORKDIR/curves.png.

  Raises:
    UserError: the run has no metrics.
  """
  records = metrics_log.read_records(pathlib.Path(workdir))
  if not records:
    raise UserError(f'nothing to draw yet: no metrics in {workdir}')
  train, val = (
    [record for record in records if record['split'] == split]
    for split in ('train', 'val')
  )
  best_by = metrics.primary_metric(records[0])
  names = ('accuracy', 'loss') if best_by == 'accuracy' else ('loss',)
  figure = Figure(figsize=(11, 4.4), dpi=150, layout='constrained')
  panels = np.ravel(figure.subplots(1, len(names)))
  for name, axes in zip(names, panels, strict=True):
    _plot_train(axes, train, name)
    _plot_val(axes, val, name, name == best_by)
    axes.set_title(f'Query {name}', loc='left', fontweight='bold')
    axes.set_xlabel('meta-iteration')
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))
    axes.grid(color='0.92')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
  first = panels[0]
  if best_by == 'accuracy':
    first.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  if val:
    best = val[0]
    for record in val:
      best = record if metrics.is_better(record, best) else best
    _mark_best(first, best)
  first.legend(frameon=False, loc='best')
  figure.suptitle(pathlib.Path(workdir).resolve().name, color=GREY)
  path = pathlib.Path(workdir) / 'curves.png'
  figure.savefig(path)
  return path


def plot_regression(
  path: str, config, saved: Checkpoint, num_tasks: int = 4
) -> pathlib.Path:
  """Draws curves fitted to the first tasks of an evaluation, step by step.

  Args:
    path: of the picture to write.
    config: of a regression.
    saved: a checkpoint of it.
    num_tasks: how many.

  Returns:
    The path.
  """
  draw_regression(config, saved, num_tasks).savefig(path)
  return pathlib.Path(path)


def draw_regression(
  config, saved: Checkpoint, num_tasks: int, *, columns: int = 2, width=11.0
) -> Figure:
  """The picture of `plot_regression`, `width` inches wide."""
  phase = setup.eval_phase(config)
  tasks = eval_tasks(config, phase, num_tasks, setup.eval_sharding(config))
  episodes = [tasks.build_episode(key, tasks.shared) for key in tasks.keys]
  rows = -(-num_tasks // columns)
  size = width, 0.6 + 2.9 * rows * min(1, width / columns / 5.5) ** 0.5
  figure = Figure(figsize=size, dpi=150, layout='constrained')
  panels = np.ravel(figure.subplots(rows, columns, sharex=True))
  for axes, episode in zip(panels, episodes, strict=False):
    _plot_points(axes, episode)
  low, high = data.REGRESSIONS[config.data.name].RANGE
  x = np.linspace(low, high, 201, dtype=np.float32)[:, None]
  styles = (GREY, ':'), (VERMILION, '--'), (BLUE, '-')
  steps = sorted({0, 1, max(phase.num_steps, 1)})
  for num_steps, (color, style) in zip(steps, styles, strict=False):
    fitted = phase._replace(num_steps=num_steps)
    learner = setup.phase_learner(config, fitted)
    label = f'after {num_steps} inner steps'
    for axes, episode in zip(panels, episodes, strict=False):
      adapted, stats, _ = learner.adapt(
        saved.params, saved.stats, episode.support
      )
      y = learner.predict(adapted, stats, x)
      axes.plot(x[:, 0], y[:, 0], style, color=color, label=label)
  figure.legend(
    *panels[0].get_legend_handles_labels(),
    frameon=False,
    loc='outside upper center',
    ncols=max(2, round(width / 2.2)),
    labelcolor=INK,
  )
  return figure


def _plot_points(axes, episode: Episode) -> None:
  """The query points joined, which are many, and the support points."""
  x, y = (np.ravel(values) for values in episode.query)
  order = np.argsort(x)
  axes.plot(
    x[order], y[order], color=GREY, linewidth=5, alpha=0.35, label='truth'
  )
  x, y = (np.ravel(values) for values in episode.support)
  axes.plot(
    x,
    y,
    '^',
    color=INK,
    markersize=7,
    zorder=3,
    label=f'{len(x)} support points',
  )
  style_axes(axes)


def plot_episode(
  path: str, episode: Episode, logits: Array, class_names: list[str] = ()
) -> pathlib.Path:
  """Draws one task with what is answered; see `draw_episode`.

  Args:
    path: of the picture to write.
    episode: images [N, H, W, C], C = 1 or 3, in any range; labels 0..W-1.
    logits: [N, W] of the query images.
    class_names: W names, to stand beside the letters A, B, ...

  Returns:
    The path.
  """
  logits = np.asarray(logits)
  exponentials = np.exp(logits - logits.max(-1, keepdims=True))
  probability = (exponentials / exponentials.sum(-1, keepdims=True)).max(-1)
  predicted = logits.argmax(-1)
  draw_episode(episode, predicted, probability, class_names).savefig(path)
  return pathlib.Path(path)


def draw_episode(
  episode: Episode, predicted, probability=None, class_names: list[str] = ()
) -> Figure:
  """Draws one task: a row per class, its support images, then its queries.

  Under each query stands the predicted class with its probability: after a tick
  in a solid frame where it is right, after a cross in a dashed one where not.

  Args:
    episode: images [N, H, W, C], C = 1 or 3, in any range; labels 0..W-1.
    predicted: [N], the label that each query image is given.
    probability: [N], of that label; None if it is not known.
    class_names: W names, to stand beside the letters A, B, ...
  """
  support, query = (_by_class(batch) for batch in episode)
  label = np.asarray(episode.query.targets)
  shots = min(MAX_IMAGES, max(map(len, support.values())))
  queries = min(MAX_IMAGES, max(map(len, query.values())))

  # One axes in units of images: x = 0 is the first support image's left edge,
  # y grows downwards.
  left, top, pitch = (1.9 if len(class_names) else 0.6), 1.15, 1.34
  edge, start = 0.15 - left, shots + 0.5
  width, height = left + start + queries + 0.1, top + pitch * len(support)
  figure = Figure(figsize=(width, height), dpi=150)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(xlim=(-left, width - left), ylim=(height - top, -top))
  axes.axis('off')
  legend = 'predicted class'
  if probability is not None:
    legend += ' and its probability'
  if queries < max(map(len, query.values())):
    legend += f'; the first {queries} of each class are shown'
  _title(
    axes,
    edge,
    start,
    f'{(predicted == label).sum()} of {len(label)} query images right',
    legend,
  )
  draw = _drawer(axes, episode)
  for row in range(len(support)):
    y = pitch * row
    _name_row(axes, edge, y, row, class_names)
    for column, i in enumerate(support[row][:shots]):
      draw(episode.support.inputs[i], column, y)
    for column, i in enumerate(query[row][:queries]):
      draw(episode.query.inputs[i], start + column, y)
      sure = None if probability is None else probability[i]
      _mark(axes, start + column, y, predicted[i], sure, label[i])
  return figure


def _title(axes, edge, start, right: str, legend: str) -> None:
  axes.text(edge, -0.85, right, fontsize=12, fontweight='bold')
  axes.text(edge, -0.6, legend, fontsize=9, color=GREY)
  axes.text(0.03, -0.1, 'support', fontsize=10)
  axes.text(start + 0.03, -0.1, 'query', fontsize=10)


def _name_row(axes, edge, y, row: int, class_names: list[str]) -> None:
  axes.text(
    edge, y + 0.5, letter(row), va='center', fontweight='bold', fontsize=16
  )
  if len(class_names):
    name = textwrap.fill(class_names[row], 14, max_lines=4)
    axes.text(-1.35, y + 0.5, name, va='center', fontsize=8, color=GREY)


def _plot_train(axes, records: list[dict], name: str) -> None:
  """Each record faintly, and above them the mean of those around it."""
  step = np.array([r['step'] for r in records])
  value = np.array([r[name] for r in records])
  axes.plot(step, value, color=GREY, alpha=0.25, linewidth=0.8)
  half = len(value) // 50
  window = np.full(2 * half + 1, 1 / (2 * half + 1))
  if records:
    mean = np.convolve(value, window, 'valid')
    axes.plot(
      step[half : len(step) - half],
      mean,
      color=GREY,
      linewidth=1.6,
      label='training tasks' + ', smoothed' * bool(half),
    )


def _plot_val(axes, records: list[dict], name: str, intervals: bool) -> None:
  step = [r['step'] for r in records]
  value = [r[name] for r in records]
  # Over a single task the interval is infinite.
  interval = [min(r['interval'], 1) for r in records]
  if records:
    axes.errorbar(
      step,
      value,
      interval if intervals else None,
      color=BLUE,
      marker='o',
      markersize=4,
      linewidth=1.6,
      elinewidth=1,
      capsize=2,
      label='validation, 95 % interval',
    )


def _mark_best(axes, record: dict) -> None:
  name, interval = metrics.primary_metric(record), record['interval']
  axes.plot(record['step'], record[name], color=BLUE, marker='*', markersize=13)
  text = f'★ best {record[name]:.3f} ± {interval:.3f}'
  if name == 'accuracy':
    text = f'★ best {record[name]:.1%} ± {100 * interval:.1f}'
  axes.set_title(text, loc='right', color=BLUE)


def _by_class(batch: Batch) -> dict[int, np.ndarray]:
  label = np.asarray(batch.targets)
  return {int(c): np.flatnonzero(label == c) for c in np.unique(label)}


def _drawer(axes, episode: Episode):
  """Returns a function that draws an image, brought back to 0..1 if it must."""
  images = [np.asarray(batch.inputs) for batch in episode]
  low = min(0, *(image.min() for image in images))
  high = max(1, *(image.max() for image in images))

  def draw(image, x, y):
    image = (np.asarray(image) - low) / (high - low)
    if image.shape[-1] == 1:
      image = np.repeat(image, 3, axis=-1)
    axes.imshow(image, extent=(x + 0.03, x + 0.97, y + 0.97, y + 0.03))

  return draw


def _mark(axes, x, y, predicted, probability, label) -> None:
  right = predicted == label
  color = BLUE if right else VERMILION
  axes.add_patch(
    Rectangle(
      (x + 0.03, y + 0.03),
      0.94,
      0.94,
      fill=False,
      edgecolor=color,
      linewidth=2 if right else 3,
      linestyle='-' if right else (0, (2, 1)),
    )
  )
  text = f'{"✓" if right else "✗"} {letter(predicted)}'
  if probability is not None:
    text += f' {probability:.0%}'
  axes.text(
    x + 0.5,
    y + 1.12,
    text,
    ha='center',
    va='center',
    color=color,
    fontsize=9,
    fontweight='normal' if right else 'bold',
  )


def letter(index: int) -> str:
  """How a label of a task is called: A, B, ... and beyond Z by number."""
  return chr(ord('A') + index) if index < 26 else str(index)
