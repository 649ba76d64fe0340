"""The layers of the package: which module may import which."""

import ast
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / 'maml_jax'
FILES = [REPOSITORY / 'main.py', *sorted(PACKAGE.rglob('*.py'))]

# From top to bottom. A module imports from its own package and from lower
# layers only. The longest matching prefix decides.
LAYERS = [
  {'program', ''},
  {'fewshot', 'pytorch_maml', 'report', 'train'},
  {'evaluation'},
  {'experiment', 'saving', 'train_step'},
  {'learner', 'models', 'data', 'config', 'methods'},
  {'outer_loss'},
  {'config_checks', 'inner_loop', 'sharding'},
  {'ops', 'platforms'},
  {'config_versions', 'default_config', 'learner_config', 'types'},
  {'utils'},
]
# Modules that count as one package.
PROGRAM = ('__main__', 'cli', 'cli_flags', 'main')
RANK = {name: -i for i, layer in enumerate(LAYERS) for name in layer}

# Third-party packages that only some parts of the package may import.
OWNERS = {
  'PIL': ('data', 'fewshot', 'report'),
  'array_record': ('data',),
  'etils': ('experiment.orbax_io',),
  'flax': ('models',),
  'gradio': ('fewshot.app',),
  'jinja2': ('report',),
  'markupsafe': ('report',),
  'matplotlib': ('report',),
  'orbax': ('experiment.orbax_io',),
  'tensorboardX': ('experiment.tensorboard',),
  'tensorflow_datasets': ('data',),
  'torch': ('pytorch_maml',),
  'tqdm': ('utils.progress', 'experiment.run_display'),
  'yaml': ('pytorch_maml',),
}
ids = {'ids': lambda path: str(path.relative_to(REPOSITORY))}


def module_name(path):
  """Returns the dotted name of a file within maml_jax, such as 'data.store'."""
  if path == REPOSITORY / 'main.py':
    return 'main'
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def layer(name):
  """Returns the rank and the package of a module."""
  top = name.split('.')[0]
  top = 'program' if top in PROGRAM else top
  return RANK[top], top


def imported_names(path):
  """Yields the dotted names that a file imports, anywhere in the file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: imports must be absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, **ids)
def test_modules_import_from_lower_layers_only(path):
  rank, package = layer(module_name(path))
  for name in imported_names(path):
    top, _, rest = name.partition('.')
    assert top != 'configs', 'only users import configs/'
    if top != 'maml_jax' or not rest or rest == '__version__':
      continue
    target_rank, target_package = layer(rest)
    assert target_package == package or target_rank < rank, name


@pytest.mark.parametrize('path', FILES, **ids)
def test_third_party_packages_are_imported_by_their_owners_only(path):
  module = f'{module_name(path)}.'
  for name in imported_names(path):
    owners = OWNERS.get(name.split('.')[0])
    if owners:
      assert any(module.startswith(f'{owner}.') for owner in owners), name


@pytest.mark.parametrize(
  'path',
  [
    path
    for folder in ('maml_jax', 'tests', 'benchmarks', 'studies', 'examples')
    for path in sorted((REPOSITORY / folder).rglob('*.py'))
  ],
  **ids,
)
def test_private_names_are_used_in_their_own_module_only(path):
  tree = ast.parse(path.read_text())
  modules = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.startswith('maml_jax'):
      for alias in node.names:
        assert not alias.name.startswith('_') or alias.name.startswith('__')
        modules.add(alias.asname or alias.name)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if node.value.id in modules and node.attr.startswith('_'):
        is_method = node.attr in ('_replace', '_asdict', '_fields', '_make')
        assert is_method or node.attr.startswith('__'), (
          f'line {node.lineno}: {node.value.id}.{node.attr}'
        )


def test_every_package_has_an_init_file():
  for folder in {path.parent for path in PACKAGE.rglob('*.py')}:
    assert (folder / '__init__.py').is_file()


def test_public_names_are_declared_and_exist():
  """`__all__` of each module lists names that it defines or re-exports."""
  for path in sorted(PACKAGE.rglob('*.py')):
    tree = ast.parse(path.read_text())
    defined = set()
    for node in tree.body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef):
        defined.add(node.name)
      elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = (
          node.targets if isinstance(node, ast.Assign) else [node.target]
        )
        names = [n for t in targets for n in ast.walk(t)]
        defined |= {n.id for n in names if isinstance(n, ast.Name)}
      elif isinstance(node, ast.Import | ast.ImportFrom):
        defined |= {a.asname or a.name for a in node.names}
    listed = [
      ast.literal_eval(node.value)
      for node in tree.body
      if isinstance(node, ast.Assign)
      and getattr(node.targets[0], 'id', '') == '__all__'
    ]
    assert set(*listed) <= defined, path


def test_learner_imports_only_jax_optax_and_numpy():
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
