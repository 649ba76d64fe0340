"""Meta-training, and a fair baseline, for any learner and any tasks.

This is a module, not a program: `oscillator.py`, `neural_field.py` and
`segmentation.py` use it. The baseline is Adam from one initialization, with the
learning rate that is best for the given number of steps on validation tasks.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

from maml_jax import data
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.report.style import SERIES
from maml_jax.train_step import init_state, make_train_step


def meta_train(learner, sample_episode, shared, *, steps, rate, tasks=8):
  """Returns meta-learned parameters of a learner without statistics.

  Args:
    learner: the learner.
    sample_episode: `sample_episode(key, shared) -> Episode`.
    shared: arrays that it reads, such as a data set.
    steps: number of meta-iterations.
    rate: the initial learning rate of Adam, which decays to 0.
    tasks: number of tasks per meta-iteration.
  """
  tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
  tx = optax.chain(optax.clip_by_global_norm(1.0), tx)
  tx = optax.apply_if_finite(tx, steps)  # skips tasks on which it diverges
  train_step = make_train_step(
    learner,
    tx,
    sample_episode,
    key=jax.random.key(1),
    meta_batch_size=tasks,
    max_steps=steps,
  )
  state = init_state(learner, tx, jax.random.key(0))
  return train_step(state, shared, steps)[0].params


def load_glyphs():
  """Returns the splits train, val and test of the data set glyphs."""
  splits = (data.load_dataset('glyphs', s) for s in ('train', 'val', 'test'))
  return [jax.tree.map(jnp.asarray, split) for split in splits]


def sample_tasks(sample_episode, shared, num_tasks, *args, seed=-1):
  """Returns an episode whose leaves have a leading axis of that length."""
  keys = jax.random.split(jax.random.key(seed), num_tasks)
  sample = jax.vmap(lambda key: sample_episode(key, shared, *args))
  return jax.jit(sample)(keys)


def predict_by_step(learner, params, tasks):
  """Returns the query outputs after 0, 1, ..., K steps: [T, K + 1, ...]."""

  def adapt(task):
    def observe(params, stats):
      return learner.predict(params, stats, task.query.inputs)

    return learner.adapt_and_observe(params, {}, task.support, observe)

  return jax.jit(jax.vmap(adapt))(tasks)


def supervised(loss_fn, apply):
  """Returns the support loss of a model and a `loss_fn(outputs, targets)`."""

  def support_loss(params, stats, support):
    outputs, stats = apply(params, stats, support.inputs, train=True)
    return loss_fn(outputs, support.targets), stats

  return support_loss


@functools.partial(jax.jit, static_argnames=('loss_fn', 'apply'))
def fit(loss_fn, apply, start, rate, steps, tasks):
  """Returns the outputs for the query sets [T, ...] after steps of Adam.

  Args:
    loss_fn: `loss_fn(params, {}, support) -> (loss, stats)`.
    apply: that of the model.
    start: the initial parameters.
    rate: the learning rate.
    steps: number of steps.
    tasks: an episode whose leaves have a leading axis T.
  """
  tx = optax.scale_by_adam()

  def fit_one(task):
    def step(_, state):
      params, moments = state
      grads = jax.grad(lambda p: loss_fn(p, {}, task.support)[0])(params)
      updates, moments = tx.update(grads, moments)
      return jax.tree.map(lambda p, u: p - rate * u, params, updates), moments

    params, _ = jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))
    return apply(params, {}, task.query.inputs, train=False)[0]

  return jax.vmap(fit_one)(tasks)


def fit_tuned(loss_fn, apply, rates, steps, val, test, score, start):
  """Returns `fit` on test tasks, with the learning rate that is best on others.

  Args:
    loss_fn: see `fit`.
    apply: see `fit`.
    rates: the learning rates to choose from; the choice is printed.
    steps: see `fit`.
    val: the tasks that choose.
    test: the tasks to fit.
    score: `score(outputs, targets) -> [T]`, the higher the better.
    start: see `fit`.
  """

  def mean_score(rate):
    outputs = fit(loss_fn, apply, start, rate, steps, val)
    return jnp.nan_to_num(score(outputs, val.query.targets), nan=-1e9).mean()

  rate = max(rates, key=mean_score)
  print(f'best learning rate for {steps} steps of Adam: {rate}')
  return fit(loss_fn, apply, start, rate, steps, test)


def print_intervals(scores, unit=''):
  """Prints the mean of each [T] and its 95 % interval over tasks, by name."""
  for name, values in scores.items():
    print('{:36} {:.3f} ± {:.3f} {}'.format(name, *mean_interval(values), unit))


def draw(output, images, scores=None, labels=(), rows=4):
  """Draws images of the first tasks and, at their left, a plot of scores.

  Args:
    output: the file to write.
    images: name -> [T, H, W], ink from 0 to 1, NaN for unknown, or
      [T, H, W, 3], colors; a column each.
    scores: number of examples -> name -> [T]; None for no plot.
    labels: those of the axes of the plot.
    rows: number of tasks.
  """
  width = 1.1 * len(images) + (4 if scores else 0)
  figure = Figure(figsize=(width, 1.1 * rows + 0.3), dpi=90)
  figure.set_layout_engine('constrained', w_pad=0.02, h_pad=0.02)
  pictures = figure
  if scores:
    plot, pictures = figure.subfigures(1, 2, width_ratios=(4, width - 4))
    axes = plot.subplots()
    for name, color in zip(next(iter(scores.values())), SERIES, strict=False):
      values = [mean_interval(by_name[name]) for by_name in scores.values()]
      style = {'marker': 'o', 'capsize': 3, 'color': color, 'label': name}
      axes.errorbar(scores.keys(), *zip(*values, strict=True), **style)
    axes.set(xlabel=labels[0], ylabel=labels[1], xscale='log', ylim=(0, None))
    axes.set_xticks(list(scores), list(map(str, scores)))
    axes.set_xticks([], minor=True)
    axes.spines[['top', 'right']].set_visible(False)
    plot.legend(loc='outside upper left', frameon=False)
  for row, panels in enumerate(pictures.subplots(rows, len(images))):
    for axes, (name, column) in zip(panels, images.items(), strict=True):
      axes.set_facecolor('#cfe3f1')
      style = {'cmap': 'gray_r', 'interpolation': 'nearest'}
      axes.imshow(column[row], vmin=0, vmax=1, **style)
      axes.set(xticks=[], yticks=[])
      if not row:
        axes.set_title(name, fontsize=11)
      axes.spines[:].set_color('0.75')
  figure.savefig(output)


def run(main, doc):
  """Calls `main(output=FILE)` with the flag `--output`."""
  parser = argparse.ArgumentParser(description=doc.partition('\n')[0])
  parser.add_argument('--output', metavar='FILE', help='file of the figure')
  main(output=parser.parse_args().output)
