"""The shape of the package: who may import whom."""

import ast
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / 'maml_jax'
FILES = [REPOSITORY / 'main.py', *sorted(PACKAGE.rglob('*.py'))]

# From the top down; a layer imports from those below it alone.
LAYERS = [
  {'main'},
  {'cli'},
  {'adapt'},
  {'__init__', 'compat', 'contact', 'report', 'train'},
  {'classifier', 'grid'},
  {'evaluate'},
  {'checkpoint', 'results', 'tasks'},
  {'experiment', 'metrics'},
  {'optim', 'workdir'},
  {'learner'},
  {'baselines', 'inner', 'intervals', 'parallel'},
  {'models'},
  {'ops'},
  {'data'},
  {'config', 'disk', 'hosts'},
  {'console', 'errors', 'hugepages', 'types'},
]
RANK = {name: -i for i, layer in enumerate(LAYERS) for name in layer}

# Third parties that one layer alone may import.
OWNERS = {
  'PIL': {'contact', 'data'},
  'array_record': {'data'},
  'flax': {'models'},
  'matplotlib': {'report'},
  'orbax': {'checkpoint'},
  'tensorboardX': {'metrics'},
  'tensorflow_datasets': {'data'},
  'torch': {'compat'},
  'yaml': {'compat'},
}
ids = {'ids': lambda path: str(path.relative_to(REPOSITORY))}


def layer_of(path):
  if path == REPOSITORY / 'main.py':
    return 'main'
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(path):
  """Yields the dotted names that a file imports, wherever in the file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: imports are absolute here'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, **ids)
def test_imports_point_down(path):
  layer = layer_of(path)
  for name in imports(path):
    top, _, rest = name.partition('.')
    assert top != 'configs', 'configs are read by path'
    target = rest.split('.')[0]
    if top == 'maml_jax' and target:
      assert target == layer or RANK[target] < RANK[layer], name


@pytest.mark.parametrize('path', FILES, **ids)
def test_third_parties_stay_where_they_belong(path):
  for name in imports(path):
    owners = OWNERS.get(name.split('.')[0])
    assert not owners or layer_of(path) in owners, name


def test_packages_are_complete():
  for folder in {path.parent for path in PACKAGE.rglob('*.py')}:
    assert (folder / '__init__.py').is_file()


def test_learner_needs_jax_optax_and_numpy_alone():
  script = (
    'import sys, jax, optax, numpy\n'
    'before = {name.split(".")[0] for name in sys.modules}\n'
    'import maml_jax.learner\n'
    'after = {name.split(".")[0] for name in sys.modules}\n'
    'print(*sorted(after - before - sys.stdlib_module_names))\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script],
    check=True,
    text=True,
    capture_output=True,
    cwd=REPOSITORY,
  )
  assert done.stdout.split() == ['maml_jax']
