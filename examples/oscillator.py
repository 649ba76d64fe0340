"""Solves differential equations in five gradient steps, without labels.

    python examples/oscillator.py --output=oscillator.png

A task is a damped oscillator, u'' + 2 zeta omega u' + omega^2 u = 0, with its
own damping, frequency and initial state. The network maps time to u. The inner
loss needs no solution: it is the residual of the equation plus the error of the
initial state (`support_loss_fn`). Only the outer loss knows the solution.

It prints the error (RMSE) on new tasks, and that of Adam from a random start,
with the learning rate that is best for that number of steps on other tasks.
"""

import gallery
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from maml_jax import learner as lib

WIDTH, POINTS, END = 32, 32, 5.0
RATES = (3e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3)  # of Adam
STYLES = ('#56616c', ':'), ('#d55e00', '--'), ('#0072b2', '-')


def sample_episode(key, shared):
  """Samples an oscillator; its support set has no targets."""
  low, high = jnp.array([[0.05, 1, -1, -1], [0.4, 3, 1, 1]])
  zeta, omega, u0, v0 = jax.random.uniform(key, (4,), minval=low, maxval=high)
  t, decay = jnp.linspace(0, END, POINTS), zeta * omega
  rate = omega * (1 - zeta**2) ** 0.5
  wave = u0 * jnp.cos(rate * t) + (v0 + decay * u0) / rate * jnp.sin(rate * t)
  inputs = {'t': t, 'zeta': zeta, 'omega': omega, 'u0': u0, 'v0': v0}
  query = lib.Batch(inputs, jnp.exp(-decay * t) * wave)
  return lib.Episode(lib.Batch(inputs, ()), query)


def init(key):
  """Returns random parameters of a network with two hidden layers."""
  sizes = (1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)
  return {
    f'layer{i}': {
      'w': jax.random.normal(jax.random.fold_in(key, i), size) / size[0] ** 0.5,
      'b': jnp.zeros(size[1]),
    }
    for i, size in enumerate(sizes)
  }, {}


def apply(params, stats, inputs, *, train):
  """Returns u [N] at the times [N]."""
  x = inputs['t'][:, None] / END * 4 - 2
  for i in range(3):
    x = jnp.sin(x) if i else x
    x = x @ params[f'layer{i}']['w'] + params[f'layer{i}']['b']
  return x[:, 0], stats


def physics_loss(params, stats, support):
  """Returns the error of the equation and of the initial state."""

  def u(t):
    return apply(params, stats, {'t': t}, train=True)[0]

  def differentiate(fn):
    return lambda t: jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]

  velocity, task = differentiate(u), support.inputs
  u, v, a = (f(task['t']) for f in (u, velocity, differentiate(velocity)))
  residual = a / task['omega'] ** 2 + 2 * task['zeta'] * v / task['omega'] + u
  start = (u[0] - task['u0']) ** 2 + (v[0] - task['v0']) ** 2
  return jnp.square(residual).mean() + start, stats


def negative_rmse(u, exact):
  """Returns minus the root mean squared error of each task."""
  return -jnp.sqrt(jnp.square(u - exact).mean(-1))


def draw(u, episodes, output):
  """Draws the solutions of the first six tasks."""
  figure = Figure(figsize=(8, 4.4), dpi=95, layout='constrained')
  panels = figure.subplots(2, 3, sharex=True, sharey=True)
  for i, axes in enumerate(panels.flat):
    task = {k: x[i] for k, x in episodes.query.inputs.items()}
    exact = episodes.query.targets[i]
    axes.plot(task['t'], exact, color='0.82', linewidth=8, label='exact')
    for (name, x), style in zip(u.items(), STYLES, strict=False):
      axes.plot(task['t'], x[i], style[1], color=style[0], label=name)
    title = 'damping {zeta:.2f}, frequency {omega:.1f}'
    axes.set_title(title.format(**task), fontsize=10)
    axes.spines[['top', 'right']].set_visible(False)
  handles = axes.get_legend_handles_labels()
  figure.legend(*handles, loc='outside upper center', ncols=4, frameon=False)
  figure.supxlabel('time', fontsize=10)
  figure.savefig(output)


def main(steps=2000, num_tasks=200, adam_steps=(5, 50, 100, 500), output=None):
  """Trains, evaluates and draws; returns the errors [T] by name."""
  learner = lib.make_learner(
    lib.Model(init, apply),
    lib.InnerConfig(
      learn_lr='parameter', per_step=('lr',), precondition='kronecker'
    ),
    loss_fn=lib.squared_error,
    metric_fns={},
    support_loss_fn=physics_loss,
  )
  params = gallery.meta_train(
    learner, sample_episode, (), steps=steps, rate=5e-3, tasks=16
  )
  val = gallery.sample_tasks(sample_episode, (), 40, seed=-2)
  test = gallery.sample_tasks(sample_episode, (), num_tasks)
  learned = gallery.predict_by_step(learner, params, test)
  u = {f'step {k}': learned[:, k] for k in (0, 1, 5)}
  start, _ = init(jax.random.key(0))
  for n in adam_steps:
    u[f'random start, {n} steps of Adam'] = gallery.fit_tuned(
      physics_loss, apply, RATES, n, val, test, negative_rmse, start
    )
  errors = {k: -negative_rmse(x, test.query.targets) for k, x in u.items()}
  gallery.print_intervals(errors)
  if output:
    draw(u, test, output)
  return errors


if __name__ == '__main__':
  gallery.run(main, __doc__)
