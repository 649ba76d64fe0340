"""Packaging: dependencies, wheel and sdist, the Makefile, the README."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import jax
import pytest

import maml_jax
from maml_jax import data
from maml_jax.config import preset_names
from maml_jax.data.augment import AUGMENTATIONS

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())
PROJECT = PYPROJECT['project']
EXTRAS = PROJECT['optional-dependencies']
# Imported by maml_jax, but installed by extras only.
OPTIONAL = ('app', 'train', 'torch')
needs_make = pytest.mark.skipif(
  not shutil.which('make'), reason='make is not installed'
)


def distribution_name(requirement):
  return re.match(r'[\w-]+', requirement)[0].lower().replace('_', '-')


def test_requirements_txt_lists_dependencies_and_train_extra():
  lines = (REPOSITORY / 'requirements.txt').read_text().splitlines()
  listed = [line for line in lines if not line.startswith('#')]
  assert sorted(listed) == sorted(PROJECT['dependencies'] + EXTRAS['train'])


@pytest.mark.parametrize(
  'requirement', [*PROJECT['dependencies'], *sum(EXTRAS.values(), [])]
)
def test_versions_have_lower_and_upper_bounds(requirement):
  if own := re.fullmatch(r'maml_jax\[([\w,]+)\]', requirement):
    assert {*own[1].split(',')} <= EXTRAS.keys()
    return
  assert re.fullmatch(
    r'[\w-]+(\[\w+\])?>=\d+(\.\d+)*,<\d+(\.\d+)*', requirement
  )


def test_accelerator_extras_have_the_bounds_of_jax():
  requirements = PROJECT['dependencies']
  jax = next(r for r in requirements if distribution_name(r) == 'jax')
  bounds = jax.removeprefix('jax')
  for extra in ('cuda', 'tpu'):
    (requirement,) = EXTRAS[extra]
    assert requirement.endswith(bounds)


def test_every_import_is_declared():
  distributions = importlib.metadata.packages_distributions()
  requirements = [*PROJECT['dependencies']]
  for extra in OPTIONAL:
    requirements += EXTRAS[extra]
  declared = {distribution_name(requirement) for requirement in requirements}
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
        owners = {distribution_name(owner) for owner in distributions[top]}
        assert owners & declared, f'{path.name} imports {top}'


def test_every_package_is_listed():
  folders = {
    path.parent.relative_to(REPOSITORY).as_posix().replace('/', '.')
    for path in (REPOSITORY / 'maml_jax').rglob('*.py')
  }
  assert folders | {'maml_jax.presets'} == set(
    PYPROJECT['tool']['setuptools']['packages']
  )


def test_version_can_be_read_without_importing_the_package():
  source = ast.parse((REPOSITORY / 'maml_jax' / '__init__.py').read_text())
  values = [
    node.value
    for node in source.body
    if isinstance(node, ast.Assign) and node.targets[0].id == '__version__'
  ]
  assert [maml_jax.__version__] == list(map(ast.literal_eval, values))


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
  """The sdist, and the wheel built from it, of a copy of the repository."""
  source = tmp_path_factory.mktemp('source') / 'clone'
  names = subprocess.run(
    ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    cwd=REPOSITORY,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split('\0')
  for name in filter(None, names):
    if (REPOSITORY / name).is_file():
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(REPOSITORY / name, source / name)
  done = subprocess.run(
    [sys.executable, '-m', 'build', '--outdir', source / 'dist', source],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  (sdist,) = (source / 'dist').glob('*.tar.gz')
  (wheel,) = (source / 'dist').glob('*.whl')
  return sdist, wheel


@pytest.mark.slow
def test_sdist_and_wheel_contain_the_package_and_the_presets(distributions):
  sdist, wheel = distributions
  package = {
    path.relative_to(REPOSITORY).as_posix()
    for path in (REPOSITORY / 'maml_jax').rglob('*.py')
  }
  presets = {path.name for path in (REPOSITORY / 'configs').glob('*.py')}
  in_wheel = set(zipfile.ZipFile(wheel).namelist())
  assert package | {f'maml_jax/presets/{name}' for name in presets} <= in_wheel
  templates = {
    path.relative_to(REPOSITORY).as_posix()
    for path in (REPOSITORY / 'maml_jax/report/templates').iterdir()
  }
  assert templates | {'maml_jax/py.typed'} <= in_wheel
  assert not any(name.startswith(('tests/', 'configs/')) for name in in_wheel)
  with tarfile.open(sdist) as archive:
    in_sdist = {name.partition('/')[2] for name in archive.getnames()}
  assert package | {f'configs/{name}' for name in presets} <= in_sdist


USE_LIBRARY = """
import numpy as np
import maml_jax
from maml_jax import config
import maml_jax.learner, maml_jax.models
assert config.load('mini_5w1s').data.name == 'mini_imagenet'
few = maml_jax.load('glyphs_5w1s')
rng = np.random.default_rng(0)
images = rng.integers(0, 255, (4, 28, 28), np.uint8)
classifier = few.fit(images, ['a', 'b', 'a', 'b'], num_steps=1)
assert set(classifier.predict(images)) <= {'a', 'b'}
print(maml_jax.__file__)
"""


@pytest.mark.slow
def test_wheel_works_in_an_empty_environment(distributions, tmp_path):
  """With the core dependencies only, outside the clone."""
  _, wheel = distributions
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
  programs = tmp_path / 'venv' / 'bin'
  environment = {'PATH': os.environ['PATH'], 'HOME': str(tmp_path)}
  install = subprocess.run(
    [programs / 'python', '-m', 'pip', 'install', '--quiet', wheel],
    capture_output=True,
    text=True,
  )
  if 'No matching distribution' in install.stderr:
    pytest.skip('no package registry can be reached')
  assert install.returncode == 0, install.stderr
  checkpoint = REPOSITORY / 'checkpoints' / 'glyphs_5w1s'
  shutil.copytree(checkpoint, tmp_path / 'glyphs_5w1s')

  def call(program, *arguments):
    return subprocess.run(
      [programs / program, *arguments],
      cwd=tmp_path,
      env=environment,
      capture_output=True,
      text=True,
    )

  done = call('python', '-c', USE_LIBRARY)
  assert done.returncode == 0, done.stderr
  assert str(tmp_path) in done.stdout
  for command in (['maml-jax'], ['python', '-m', 'maml_jax']):
    assert 'modes:' in call(*command, '--help').stdout
  done = call('maml-jax', '--config=mini_5w1s', '--ways=3')
  assert done.returncode == 2 and done.stderr.startswith('error: unknown')
  done = call('maml-jax', '--config=mini_5w1s')
  assert done.returncode == 2, done.stderr
  assert "pip install 'maml_jax[train]'" in done.stderr
  assert done.stderr.count('\n') == 1


@needs_make
def test_make_without_a_suitable_python_is_one_clear_line(tmp_path):
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


@needs_make
def test_make_skips_a_broken_python_and_installs_once(tmp_path):
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


@pytest.mark.slow
def test_python_example_in_models_md_learns():
  text = (REPOSITORY / 'docs' / 'models.md').read_text()
  examples = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  (example,) = (code for code in examples if 'range(5000)' in code)
  first, later = {}, {}
  with jax.numpy_rank_promotion('allow'):  # users may
    exec(example.replace('range(5000)', 'range(1)'), first)
    exec(example.replace('range(5000)', 'range(500)'), later)
  assert later['loss'] < first['loss'] / 3
  assert later['y'].shape == later['episode'].query.targets.shape


def test_readme_has_at_most_900_words_and_no_broken_link():
  text = (REPOSITORY / 'README.md').read_text()
  assert len(text.split()) <= 900
  for target in re.findall(r'\]\((?!http)(.*?)\)', text):
    assert (REPOSITORY / target.partition('#')[0]).exists(), target


def test_docs_name_every_data_set_augmentation_and_preset():
  pages = [path.read_text() for path in (REPOSITORY / 'docs').glob('*.md')]
  text = '\n'.join(pages)
  for name in [*data.SPECS, *AUGMENTATIONS]:
    assert f'`{name}`' in text, name
  for name in preset_names():
    assert name == 'default' or f'| `{name}` |' in text, name
