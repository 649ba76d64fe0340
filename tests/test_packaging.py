import ast
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import jax
import pytest

import maml_jax
from maml_jax import data
from maml_jax.data.augment import AUGMENTATIONS

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']


def name_of(requirement):
  return re.match(r'[\w-]+', requirement)[0].lower().replace('_', '-')


def test_requirements_are_the_dependencies():
  lines = (REPOSITORY / 'requirements.txt').read_text().splitlines()
  listed = [line for line in lines if not line.startswith('#')]
  assert listed == PROJECT['dependencies']


@pytest.mark.parametrize(
  'requirement', [*PROJECT['dependencies'], *sum(EXTRAS.values(), [])]
)
def test_versions_are_bounded_on_both_sides(requirement):
  if own := re.fullmatch(r'maml_jax\[(\w+)\]', requirement):
    assert own[1] in EXTRAS
    return
  assert re.fullmatch(
    r'[\w-]+(\[\w+\])?>=\d+(\.\d+)*,<\d+(\.\d+)*', requirement
  )


def test_extras():
  assert {'cuda', 'tpu', 'dev'} <= EXTRAS.keys()
  jax = next(r for r in PROJECT['dependencies'] if name_of(r) == 'jax')
  bounds = jax.removeprefix('jax')
  for extra in ('cuda', 'tpu'):
    (requirement,) = EXTRAS[extra]
    assert requirement.endswith(bounds)


def test_every_import_is_declared():
  distributions = importlib.metadata.packages_distributions()
  declared = {name_of(requirement) for requirement in PROJECT['dependencies']}
  for path in (REPOSITORY / 'maml_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module]
      else:
        continue
      for top in {name.split('.')[0] for name in names}:
        if top == 'maml_jax' or top in sys.stdlib_module_names:
          continue
        owners = {name_of(owner) for owner in distributions[top]}
        assert owners & declared, f'{path.name} imports {top}'


def test_version_is_a_literal_that_a_build_can_read():
  source = ast.parse((REPOSITORY / 'maml_jax' / '__init__.py').read_text())
  values = [n.value for n in source.body if isinstance(n, ast.Assign)]
  assert maml_jax.__version__ in map(ast.literal_eval, values)


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_without_a_suitable_python_says_so(tmp_path):
  for name in ('Makefile', 'pyproject.toml'):
    shutil.copy(REPOSITORY / name, tmp_path)
  old = tmp_path / 'python3.9'
  old.write_text('#!/bin/sh\nexit 1\n')
  old.chmod(0o755)
  make = ['make', '--silent', 'test', f'PYTHON={old}']
  done = subprocess.run(make, capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode
  first, *_ = done.stderr.splitlines()
  assert first.startswith('error: no Python 3.11 or newer')
  assert str(old) in first
  assert not (tmp_path / '.venv').exists()


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_passes_over_a_broken_python(tmp_path):
  """The first candidate that runs builds .venv; it is asked only once."""
  for name in ('Makefile', 'pyproject.toml'):
    shutil.copy(REPOSITORY / name, tmp_path)
  log = tmp_path / 'log'
  python = tmp_path / 'python3.11'
  python.write_text(
    f'#!/bin/sh\necho "$1 $2" >> {log}\n'
    f'[ "$2" != venv ] || {{ mkdir -p .venv/bin; cp $0 .venv/bin/python; }}\n'
  )
  python.chmod(0o755)
  stub = tmp_path / 'python3.12'
  stub.write_text('#!/bin/sh\nexit 127\n')
  stub.chmod(0o755)
  make = ['make', '--silent', 'test', f'PYTHON={stub} {python}']
  subprocess.run(make, check=True, cwd=tmp_path, capture_output=True)
  calls = [line.split()[:2] for line in log.read_text().splitlines()]
  assert [call for call in calls if call[0] == '-m'] == [
    ['-m', 'venv'],
    ['-m', 'pip'],
    ['-m', 'pytest'],
  ]
  log.unlink()
  subprocess.run(make, check=True, cwd=tmp_path, capture_output=True)
  assert log.read_text().split()[:2] == ['-m', 'pytest']


def test_example_in_the_readme_learns():
  text = (REPOSITORY / 'README.md').read_text()
  (example,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert 'range(5000)' in example
  first, later = {}, {}
  with jax.numpy_rank_promotion('allow'):  # users may
    exec(example.replace('range(5000)', 'range(1)'), first)
    exec(example.replace('range(5000)', 'range(500)'), later)
  assert later['loss'] < first['loss'] / 3
  assert later['y'].shape == later['episode'].query.targets.shape


def test_readme_names_every_data_set_and_augmentation():
  text = (REPOSITORY / 'README.md').read_text()
  for name in data.SPECS:
    assert f'| `{name}` |' in text
  for name in AUGMENTATIONS:
    assert f'`{name}`' in text


def test_readme_names_every_config_and_no_missing_file():
  text = (REPOSITORY / 'README.md').read_text()
  for path in (REPOSITORY / 'configs').glob('[!_]*.py'):
    assert path.stem == 'default' or f'| `{path.stem}` |' in text
  for target in re.findall(r'\]\((?!http)(.*?)\)', text):
    assert (REPOSITORY / target.partition('#')[0]).exists(), target
