"""Learns to segment a character of an unseen script from a few masks.

    python examples/segmentation.py --output=segmentation.png

A scene shows four characters. A task is one of them; its support set is scenes
with the mask of that character, its query set other scenes. Training uses
Latin, Cyrillic and symbols; evaluation Georgian and Armenian.

It prints the intersection over union (IoU) for 1 to 20 labeled scenes, and that
of Adam from a random start and from a network trained without adaptation.
"""

import gallery
import jax
import jax.numpy as jnp
import optax

from maml_jax import learner as lib
from maml_jax import ops

SIZE, WIDTH, RATES = 32, 16, (1e-3, 1e-2, 3e-2, 0.1)


def sample_scene(key, dataset, target):
  """Draws a scene [SIZE, SIZE, 1] of four characters, and the target's mask."""
  keys, count = jax.random.split(key, 4), len(dataset.index)
  others = (target + jax.random.randint(keys[0], (3,), 1, count)) % count
  classes = jax.random.permutation(keys[1], jnp.append(others, target))
  rows = jax.random.randint(keys[2], (4,), 0, dataset.size[classes])
  images = dataset.images[dataset.index[classes, rows]] / 255
  cells = images.reshape(4, 14, 2, 14, 2).mean((2, 4))  # half the size
  cells = jnp.pad(cells, ((0, 0), (0, 2), (0, 2)))
  shifts = jax.random.randint(keys[3], (4, 2), 0, 3)
  cells = jax.vmap(lambda x, shift: jnp.roll(x, shift, (0, 1)))(cells, shifts)
  masks = (cells > 0.3) & (classes == target)[:, None, None]
  scene, mask = (jnp.block([[*x[:2]], [*x[2:]]]) for x in (cells, masks))
  return scene[..., None], mask


def sample_episode(key, dataset, shots=5):
  """Samples a character, and labeled scenes that contain it."""
  class_key, scene_key = jax.random.split(key)
  target = jax.random.randint(class_key, (), 0, len(dataset.index))
  keys = jax.random.split(scene_key, shots + 6)
  scenes, masks = jax.vmap(lambda k: sample_scene(k, dataset, target))(keys)
  support = lib.Batch(scenes[:shots], masks[:shots])
  return lib.Episode(support, lib.Batch(scenes[shots:], masks[shots:]))


def init(key):
  """Returns random parameters of four convolutions and a linear head."""
  sizes = 1, WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH
  params = {'classifier': jnp.zeros((1, 1, sizes[-1] + 1, 1))}
  for i, k in enumerate(jax.random.split(key, 4)):
    w = jax.random.normal(k, (3, 3, *sizes[i : i + 2])) / (9 * sizes[i]) ** 0.5
    params[f'conv{i}'] = {'w': w, 'b': jnp.zeros(sizes[i + 1])}
  return params, {}


def apply(params, stats, inputs, *, train):
  """Returns the logits of the mask [N, SIZE, SIZE]."""
  x = inputs
  for i in range(4):
    layer = params[f'conv{i}']
    x = ops.conv(x, layer['w'], stride=(2, 1, 2, 1)[i])
    x = jax.nn.relu(jax.nn.standardize(x, (1, 2), epsilon=1e-3) + layer['b'])
  x = x.repeat(4, 1).repeat(4, 2)  # to the size of the inputs
  x = jnp.concatenate([x, 4 * inputs], axis=-1)
  return ops.conv(x, params['classifier'])[..., 0] - 3, stats


def loss_fn(logits, masks):
  """Returns the cross entropy, with four times the weight for the mask."""
  losses = optax.sigmoid_binary_cross_entropy(logits, masks)
  return 4 * (losses * jnp.where(masks, 4, 1)).mean()


def iou(logits, masks):
  """Returns the intersection over union of all scenes of each task."""
  found = logits > 0
  return (found & masks).sum((1, 2, 3)) / (found | masks).sum((1, 2, 3))


def highlight(scenes, masks):
  """Returns the first scene of each task, its mask in orange: [T, H, W, 3]."""
  scenes, masks = scenes[:, 0], masks[:, 0, ..., None]
  color = jnp.where(masks, jnp.array([0.84, 0.37, 0]), 0.2)
  return 1 - jnp.maximum(scenes, masks) * (1 - color)


def main(steps=450, num_tasks=24, shots=(1, 2, 5, 20), output=None):
  """Trains, evaluates and draws; returns the IoU [T] by scenes and method."""
  rates = {'learn_lr': 'parameter', 'per_step': ('lr',), 'remat': False}
  inner = lib.InnerConfig(3, 0.3, 0.3, **rates), lib.InnerConfig(num_steps=0)
  learner, fixed = (
    lib.make_learner(lib.Model(init, apply), x, loss_fn=loss_fn, metric_fns={})
    for x in inner
  )
  train, val, test = gallery.load_glyphs()
  args = {'steps': steps, 'rate': 5e-3, 'tasks': 4}
  learned = gallery.meta_train(learner, sample_episode, train, **args)
  pretrained = gallery.meta_train(fixed, sample_episode, train, **args)
  scores, start = {}, init(jax.random.key(0))[0]
  loss = gallery.supervised(loss_fn, apply)
  for count in shots:
    few = gallery.sample_tasks(sample_episode, val, 4, count)
    tasks = gallery.sample_tasks(sample_episode, test, num_tasks, count)
    adam = loss, apply, RATES, 50, few, tasks, iou
    by_step = gallery.predict_by_step(learner, learned, tasks)
    outputs = {
      'learned start, 3 steps': by_step[:, 3],
      'random start, 50 steps of Adam': gallery.fit_tuned(*adam, start),
      'no adaptation': gallery.predict_by_step(fixed, pretrained, tasks)[:, 0],
      'the same, 50 steps of Adam': gallery.fit_tuned(*adam, pretrained),
    }
    print(f'IoU for {count} labeled scenes')
    truth = tasks.query.targets
    scores[count] = {name: iou(x, truth) for name, x in outputs.items()}
    gallery.print_intervals(scores[count])
  if output:
    masks = {f'step {k}': by_step[:, k] > 0 for k in range(4)}
    masks['truth'] = truth
    images = {'given': highlight(*tasks.support)}
    images |= {k: highlight(tasks.query.inputs, x) for k, x in masks.items()}
    gallery.draw(output, images, scores, ('labeled scenes', 'IoU'))
  return scores


if __name__ == '__main__':
  gallery.run(main, __doc__)
