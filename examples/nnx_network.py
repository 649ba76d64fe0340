"""Meta-trains a Flax NNX network whose batch norm keeps running statistics.

    python examples/nnx_network.py

It shows how to wrap an NNX module as a `Model`. An NNX module is a mutable
object, but the inner loop differentiates pure functions. Therefore `nnx.split`
separates the module into its definition, parameters and statistics, and `apply`
rebuilds it with `nnx.merge` and returns the new statistics. (Passing the module
itself through `jax.grad` or `lax.scan` would silently drop them.)

The tasks are those of `linen_network.py`. It prints the test accuracy of the
random and of the meta-learned initialization, and some running means:

    random initialization: accuracy RANDOM ± INTERVAL on new scripts
    learned initialization: accuracy LEARNED ± INTERVAL on new scripts
    running means of the first layer: MEANS

It takes a minute or two on two CPU cores.
"""

from flax import nnx
from on_glyphs import train_and_evaluate

from maml_jax import ops
from maml_jax.learner import Model


class Network(nnx.Module):
  """Three convolutions with batch norm, and a linear head."""

  def __init__(self, rngs, ways=5, width=32):
    he_normal, channels = nnx.initializers.he_normal(), (1, width, width)
    self.kernels = nnx.List(
      nnx.Param(he_normal(rngs.params(), (3, 3, inputs, width)))
      for inputs in channels
    )
    self.norms = nnx.List(nnx.BatchNorm(width, rngs=rngs) for _ in channels)
    # Parameters under 'classifier' use InnerConfig.classifier_lr.
    self.classifier = nnx.Linear(4 * 4 * width, ways, rngs=rngs)

  def __call__(self, x, *, train):
    for kernel, norm in zip(self.kernels, self.norms, strict=True):
      x = ops.conv(x, kernel[...], stride=2)
      x = nnx.relu(norm(x, use_running_average=not train))
    return self.classifier(x.reshape(len(x), -1))


def make_model(**sizes):
  """Wraps `Network` as a `Model`.

  Args:
    **sizes: `ways` and `width`.
  """
  network = nnx.eval_shape(lambda: Network(nnx.Rngs(0), **sizes))
  definition = nnx.graphdef(network)

  def init(key):
    network = Network(nnx.Rngs(key), **sizes)
    _, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

  def apply(params, stats, inputs, *, train):
    network = nnx.merge(definition, params, stats)
    logits = network(inputs, train=train)
    return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

  return Model(init, apply)


def main(steps=200, **sizes):
  """Trains and evaluates; returns the final state and the accuracies."""
  state, result = train_and_evaluate(make_model(**sizes), steps)
  means = state.stats['norms'][0]['mean']
  print('running means of the first layer:', means.round(2)[:4])
  return state, result


if __name__ == '__main__':
  main()
