"""Parameters as flat dicts from paths to arrays, and their groups.

A path is slash-separated, such as 'encoder/conv1/bn/scale'.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping

import jax
from jax import lax

from maml_jax.learner_config import InnerConfig
from maml_jax.types import INNER, Array, PyTree
from maml_jax.utils.errors import UserError

__all__ = [
  'CLASSIFIER',
  'OUTER_ONLY',
  'flatten',
  'flatten_model',
  'merge',
  'param_labels',
  'path_matches',
  'require_adapted_head',
  'require_matches',
  'reset_params',
  'select',
  'split_adapted',
]

# Parameters that only the outer loop trains, wherever they occur.
OUTER_ONLY = ('temperature', 'alpha_scale', 'alpha_offset')
# The pattern of the parameters of the head.
CLASSIFIER = 'classifier'


def path_matches(pattern: str, path: str) -> bool:
  """Returns whether `pattern` matches consecutive parts of `path`."""
  globs, parts = pattern.split('/'), path.split('/')
  return any(
    all(map(fnmatch.fnmatchcase, parts[i:], globs))
    for i in range(len(parts) - len(globs) + 1)
  )


def flatten(tree: PyTree) -> tuple[dict[str, Array], Callable]:
  """Returns {path: leaf} of any pytree, and the inverse function."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  paths = [_path_name(path) for path, _ in leaves]

  def unflatten(flat: Mapping[str, Array]) -> PyTree:
    return jax.tree.unflatten(structure, [flat[path] for path in paths])

  return {_path_name(path): leaf for path, leaf in leaves}, unflatten


def flatten_model(params: PyTree) -> tuple[dict[str, Array], Callable]:
  """Returns `flatten` of meta-parameters without the learned quantities.

  The inverse function adds these quantities again, unchanged. Their paths
  contain the path of a parameter, which patterns would match.
  """
  if not (isinstance(params, Mapping) and INNER in params):
    return flatten(params)
  flat, unflatten = flatten({k: x for k, x in params.items() if k != INNER})
  return flat, lambda flat: {**unflatten(flat), INNER: params[INNER]}


def select(tree: Mapping, fn: Callable, prefix: str = '') -> dict:
  """Maps the leaves of nested dicts and drops those that become None.

  Args:
    tree: nested dicts.
    fn: `fn(path, leaf)`, returns a new leaf or subtree, or None.
    prefix: of the paths.
  """
  selected = {}
  for key, value in tree.items():
    path = f'{prefix}{key}'
    if isinstance(value, Mapping):
      new = select(value, fn, f'{path}/') or None
    else:
      new = fn(path, value)
    if new is not None:
      selected[key] = new
  return selected


def merge(first: Mapping, second: Mapping) -> dict:
  """Returns the union of two nested dicts without common leaves."""
  merged = {**first}
  for key, value in second.items():
    merged[key] = merge(merged[key], value) if key in merged else value
  return merged


def param_labels(config: InnerConfig, params: PyTree) -> dict[str, str]:
  """Labels each parameter 'encoder', 'classifier' or 'frozen' by its path.

  Args:
    config: an `InnerConfig`.
    params: the parameters that the model takes, any pytree.

  Raises:
    UserError: a pattern of `config.frozen`, or a rate that differs from the
      other, matches no parameter.
  """
  paths = flatten(params)[0].keys()
  inverted = [p[1:] for p in config.frozen if p.startswith('!')]
  plain = [p for p in config.frozen if not p.startswith('!')]
  require_matches('inner.frozen', (*plain, *inverted), paths)

  _check_rates(config, paths)

  def label(path):
    if _any_matches((*plain, *OUTER_ONLY), path):
      return 'frozen'
    if inverted and not _any_matches(inverted, path):
      return 'frozen'
    return 'classifier' if path_matches(CLASSIFIER, path) else 'encoder'

  return {path: label(path) for path in paths}


def _check_rates(config, paths: Iterable[str]) -> None:
  """Raises UserError for a rate that was set but applies to no parameter."""
  default = InnerConfig()
  is_head = [path_matches(CLASSIFIER, path) for path in paths]
  for name, is_unused in (
    ('classifier_lr', not any(is_head)),
    ('encoder_lr', all(is_head)),
  ):
    rate = getattr(config, name)
    is_set = rate != getattr(default, name)
    if is_unused and is_set and config.encoder_lr != config.classifier_lr:
      raise UserError(
        f'inner.{name}={rate} applies to no parameter; available: '
        + ', '.join(sorted(paths))
      )


def split_adapted(
  config: InnerConfig, params: PyTree
) -> tuple[Callable, dict, dict]:
  """Splits parameters into those that are adapted and the others.

  Args:
    config: an `InnerConfig`.
    params: the parameters that the model takes.

  Returns:
    `combine(adapted, others) -> params`; and {path: array} of both.
  """
  labels = param_labels(config, params)
  flat, unflatten = flatten(params)
  adapted = {p: x for p, x in flat.items() if labels[p] != 'frozen'}
  others = {p: x for p, x in flat.items() if labels[p] == 'frozen'}
  return lambda adapted, others: unflatten(adapted | others), adapted, others


def require_matches(
  field: str, patterns: Iterable[str], paths: Iterable[str]
) -> None:
  """Raises UserError for the first pattern that matches no path."""
  for pattern in patterns:
    if not any(path_matches(pattern, path) for path in paths):
      raise UserError(
        f'{field}: {pattern!r} matches no parameter; available: '
        + ', '.join(sorted(paths))
      )


def require_adapted_head(config: InnerConfig, params: PyTree) -> None:
  """Raises UserError if tasks start and end with a head of zeros.

  Args:
    config: an `InnerConfig`.
    params: the parameters that the model takes.
  """
  labels = param_labels(config, params).values()
  is_fixed = config.learn_lr == 'none' and config.rule == 'none'
  if config.head != 'zero':
    return
  for reason, applies in (
    ('inner.num_steps=0', not config.num_steps),
    ('inner.frozen', CLASSIFIER not in labels),
    ('inner.classifier_lr=0', is_fixed and not config.classifier_lr),
  ):
    if applies:
      raise UserError(
        f'inner.head=zero with {reason}: the head would stay at zero in every '
        'task; use inner.head=learned or prototype'
      )


def reset_params(config: InnerConfig, params: PyTree) -> PyTree:
  """Sets parameters that start at 0 in every task to 0.

  These are the head if `config.head` is 'zero', and those that `config.zero`
  matches. Their gradient is the gradient at 0, which PyTorch-MAML's outer
  optimizer sees, too. Learned quantities, such as their rates, do not change.

  Raises:
    UserError: there are no such parameters.
  """
  head = [CLASSIFIER] if config.head == 'zero' else []
  if not (head or config.zero):
    return params
  flat, unflatten = flatten_model(params)
  require_matches('inner.zero', config.zero, flat)
  require_matches("inner.head='zero'", head, flat)
  for path, value in flat.items():
    is_head = _any_matches(head, path) and not _any_matches(OUTER_ONLY, path)
    if is_head or _any_matches(config.zero, path):
      flat[path] = value - lax.stop_gradient(value)
  return unflatten(flat)


def _any_matches(patterns: Iterable[str], path: str) -> bool:
  return any(path_matches(pattern, path) for pattern in patterns)


def _path_name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')
