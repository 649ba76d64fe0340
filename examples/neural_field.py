"""Completes characters of unseen scripts from a quarter of their pixels.

    python examples/neural_field.py --output=neural_field.png

A neural field is a network that maps the coordinates of a pixel to its value;
here a SIREN (Sitzmann et al. 2020, arXiv 2006.09661). A task is one image, and
its support set is 200 of the 784 pixels. Meta-learned initial parameters are a
prior over images (Tancik et al. 2021, arXiv 2012.02189): three inner steps
complete the image. Training uses Latin, Cyrillic and symbols; evaluation uses
Georgian and Armenian.

It prints the peak signal-to-noise ratio (PSNR, in dB) of the completed images
after each inner step, and after 50 and 500 steps of Adam from a random start,
with the learning rate that is best on Greek and Lao.
"""

import gallery
import jax
import jax.numpy as jnp

from maml_jax import learner as lib

SIZE, PIXELS, WIDTH, LAYERS, FREQUENCY = 28, 200, 64, 4, 10.0
RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # of Adam


def sample_episode(key, dataset):
  """Draws an image and `PIXELS` of its pixels; the query set is all pixels."""
  images = dataset.images
  image_key, pixel_key = jax.random.split(key)
  image = images[jax.random.randint(image_key, (), 0, len(images))]
  pixels, axis = image.reshape(-1) / 255, jnp.linspace(-1, 1, SIZE)
  points = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
  known = jax.random.permutation(pixel_key, len(pixels))[:PIXELS]
  support = lib.Batch(points[known], pixels[known])
  return lib.Episode(support, lib.Batch(points, pixels))


def init(key):
  """Returns the random parameters of a SIREN."""
  params, sizes = {}, [2, *[WIDTH] * (LAYERS - 1), 1]
  for i, layer_key in enumerate(jax.random.split(key, LAYERS)):
    bound = (6 / sizes[i]) ** 0.5 / FREQUENCY if i else 1 / sizes[i]
    w = jax.random.uniform(layer_key, sizes[i : i + 2], minval=-1) * bound
    params[f'layer{i}'] = {'w': w, 'b': jnp.zeros(sizes[i + 1])}
  return params, {}


def apply(params, stats, inputs, *, train):
  """Returns the pixels [N] at the coordinates [N, 2]."""
  x = inputs
  for i in range(LAYERS):
    x = jnp.sin(FREQUENCY * x) if i else x
    x = x @ params[f'layer{i}']['w'] + params[f'layer{i}']['b']
  return x[:, 0] + 0.5, stats


def psnr(outputs, targets):
  """Returns the peak signal-to-noise ratio of each image in dB."""
  error = jnp.square(jnp.clip(outputs, 0, 1) - targets).mean(-1)
  return -10 * jnp.log10(error)


def given_pixels(support):
  """Returns the images [T, 784] of support sets; unknown pixels are NaN."""
  column, row = jnp.moveaxis(support.inputs, -1, 0)
  where = jnp.round((row * SIZE + column + SIZE + 1) * (SIZE - 1) / 2)
  unknown = jnp.full(SIZE * SIZE, jnp.nan)
  fill = jax.vmap(lambda i, pixels: unknown.at[i].set(pixels))
  return fill(where.astype(int), support.targets)


def main(steps=800, num_tasks=100, adam_steps=(50, 500), output=None):
  """Trains, evaluates and draws; returns the PSNR [T] by name."""
  learner = lib.make_learner(
    lib.Model(init, apply),
    lib.InnerConfig(
      3, 0.05, learn_lr='parameter', per_step=('lr',), remat=False
    ),
    loss_fn=lib.squared_error,
    metric_fns={},
  )
  train, val, test = gallery.load_glyphs()
  params = gallery.meta_train(
    learner, sample_episode, train, steps=steps, rate=3e-3
  )
  few = gallery.sample_tasks(sample_episode, val, 10)
  tasks = gallery.sample_tasks(sample_episode, test, num_tasks)
  loss = gallery.supervised(lib.squared_error, apply)
  start, _ = init(jax.random.key(0))
  learned = gallery.predict_by_step(learner, params, tasks)
  images = {f'step {k}': learned[:, k] for k in range(4)}
  for count in adam_steps:
    images[f'Adam, {count}'] = gallery.fit_tuned(
      loss, apply, RATES, count, few, tasks, psnr, start
    )
  scores = {name: psnr(x, tasks.query.targets) for name, x in images.items()}
  gallery.print_intervals(scores, 'dB')
  if output:
    given, truth = given_pixels(tasks.support), tasks.query.targets
    images = {'given': given, **images, 'truth': truth}
    images = {k: x.reshape(-1, SIZE, SIZE) for k, x in images.items()}
    gallery.draw(output, images)
  return scores


if __name__ == '__main__':
  gallery.run(main, __doc__)
