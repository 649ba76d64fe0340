"""A network of your own in Flax NNX, with batch norm and its statistics.

    python examples/nnx_network.py

An NNX module is an object that changes; the inner loop differentiates pure
functions. `nnx.split` takes the module apart into what it is, its parameters
and its statistics, and `nnx.merge` puts it together again inside `apply`, which
hands the new statistics back. (Passing the module itself through `jax.grad` or
`lax.scan` would drop them silently.) A minute or two on two CPU cores.
"""

from flax import nnx
from on_glyphs import learn

from maml_jax import ops
from maml_jax.learner import Model


class Network(nnx.Module):
  """Three convolutions with batch norm, and a head."""

  def __init__(self, rngs, ways=5, width=32):
    he_normal, sizes = nnx.initializers.he_normal(), (1, width, width, width)
    self.kernels = nnx.List(
      nnx.Param(he_normal(rngs.params(), (3, 3, sizes[i], width)))
      for i in range(3)
    )
    self.norms = nnx.List(nnx.BatchNorm(width, rngs=rngs) for _ in range(3))
    self.classifier = nnx.Linear(4 * 4 * width, ways, rngs=rngs)

  def __call__(self, x, *, train):
    for kernel, norm in zip(self.kernels, self.norms, strict=True):
      x = ops.conv(x, kernel[...], stride=2)
      x = nnx.relu(norm(x, use_running_average=not train))
    return self.classifier(x.reshape(len(x), -1))


def make_model(**sizes):
  network = nnx.eval_shape(lambda: Network(nnx.Rngs(0), **sizes))
  definition = nnx.graphdef(network)

  def init(key):
    network = Network(nnx.Rngs(key), **sizes)
    _, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

  def apply(params, stats, image, *, train):
    network = nnx.merge(definition, params, stats)
    logits = network(image, train=train)
    return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

  return Model(init, apply)


def main(steps=200, **sizes):
  state, result = learn(make_model(**sizes), steps)
  mean = state.stats['norms'][0]['mean']
  print('running means of the first layer:', mean.round(2)[:4])
  return state, result


if __name__ == '__main__':
  main()
