"""Tests of the documentation: README.md, RESULTS.md, docs/ and the notebook.

Python code is executed. All shell commands, in code blocks and in running text,
are parsed by the parsers of their programs; some are executed with smaller
settings. `UNCHECKED` lists the commands that cannot be checked.
"""

import argparse
import json
import os
import pathlib
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
import tomllib

import browser
import jax
import pytest
import small_run

from maml_jax import cli, cli_flags, data
from maml_jax import config as config_lib
from maml_jax.data.augment import AUGMENTATIONS
from maml_jax.models.norm import MODES

REPOSITORY = pathlib.Path(__file__).parent.parent
DOCS = REPOSITORY / 'docs'
NOTEBOOK = REPOSITORY / 'notebooks' / 'quickstart.ipynb'
PAGES = [
  REPOSITORY / 'README.md',
  REPOSITORY / 'RESULTS.md',
  REPOSITORY / 'examples' / 'README.md',
  NOTEBOOK,
  *sorted(DOCS.rglob('*.md')),
]
PRESET = 'glyphs_5w1s'
CHECKPOINT = REPOSITORY / 'checkpoints' / 'glyphs_5w1s'
IDS = {'ids': lambda path: str(path.relative_to(REPOSITORY))}

FENCE = re.compile(r'^ *```(\w*)[^\n]*\n(.*?)^ *```', re.DOTALL | re.MULTILINE)
LANGUAGES = {'sh', 'python', 'text'}  # of code blocks; only text is unchecked
# Inline code that starts with one of these is a command.
PROGRAMS = ('python ', 'make ', 'pip ', 'maml-jax ')

EXAMPLES = [path.stem for path in (REPOSITORY / 'examples').glob('*.py')]
FOLDERS = (
  'benchmarks',
  'checkpoints',
  'configs',
  'docs',
  'examples',
  'maml_jax',
  'notebooks',
  'studies',
  'tests',
)
# These are in the directory of a run.
RUN_FOLDERS = ('checkpoints/latest', 'checkpoints/best', 'checkpoints/aside')

# The starts of commands that cannot be checked, and the reason.
UNCHECKED = {
  'git clone': 'needs the address of the repository',
  'cd ': 'a directory on the machine of the user',
  'python train.py': 'a program of PyTorch-MAML',
  'python test.py': 'a program of PyTorch-MAML',
}
# Commands to execute, with arguments that make them fast.
EXECUTED = {
  'python main.py --mode=demo': small_run.flags(),
  'python main.py --mode=eval --checkpoint=checkpoints/glyphs_5w1s': [
    '--eval.num_tasks=8',
    '--eval.curve_tasks=0',
  ],
}


def read_page(path):
  """Returns the Markdown text of a page, or of all text of a notebook."""
  if path.suffix == '.md':
    return path.read_text()
  cells = json.loads(path.read_text())['cells']
  return '\n\n'.join(
    ''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown'
  )


def code_blocks(path, language):
  return [
    text for name, text in FENCE.findall(read_page(path)) if name == language
  ]


def commands(path):
  """Returns all shell commands of a page, without comments."""
  lines = []
  for text in code_blocks(path, 'sh'):
    for line in re.sub(r'\\\n\s*', '', text).splitlines():
      line = re.sub(r'(^|\s+)#.*', '', line).strip()
      lines.extend(line.split(' && ') if line else [])
  outside = FENCE.sub('', read_page(path))
  for code in re.findall(r'(?<!`)`([^`]+)`(?!`)', outside):
    code = ' '.join(code.split())
    if code.startswith(PROGRAMS) and code != 'python main.py':
      lines.append(code)
  return lines


COMMANDS = sorted({line for path in PAGES for line in commands(path)})


class FlagsParsed(BaseException):
  """Raised instead of executing a program once its flags are parsed."""


def check_make(words):
  makefile = (REPOSITORY / 'Makefile').read_text()
  for word in words:
    name, equals, value = word.partition('=')
    if equals and name == 'EXTRAS':
      check_extras(value.split(','))
    elif equals:
      assert re.search(rf'\b{name}\b', makefile), word
    else:
      assert re.search(rf'^{name}:', makefile, re.MULTILINE), word


def check_extras(names):
  project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())
  assert set(names) <= project['project']['optional-dependencies'].keys()


def check_pip(words):
  assert words[0] == 'install'
  for extras in re.findall(r'(?:\.|maml_jax)\[(.+?)\]', ' '.join(words)):
    check_extras(extras.split(','))


def check_main(words):
  """Checks that modes, flags, presets and fields exist and fit together."""
  if words == ['--help']:
    return
  flags, overrides = cli_flags.parse(words)
  if 'config' not in cli_flags.MODES[flags.mode].flags:
    return
  # A checkpoint may be a placeholder, so a shipped one provides the config.
  source = flags.checkpoint or flags.workdir or ''
  if source.startswith('checkpoints/') and not flags.config:
    saved = config_lib.read_saved(CHECKPOINT)
    config_lib.override(saved, overrides)
  elif 'NAME' not in str(flags.config):
    config_lib.load(flags.config or PRESET, overrides)


def check_module(name, words, monkeypatch):
  """Runs a module until it has parsed its flags; the rest must be fields."""
  parse = argparse.ArgumentParser.parse_known_args

  def parse_and_stop(*args, **kwargs):
    _, rest = parse(*args, **kwargs)
    config_lib.load(PRESET, rest)
    raise FlagsParsed

  monkeypatch.setattr(
    argparse.ArgumentParser, 'parse_known_args', parse_and_stop
  )
  monkeypatch.setattr(sys, 'argv', [name, *words])
  try:
    with pytest.raises(FlagsParsed):
      runpy.run_module(name, run_name='__main__')
  except SystemExit as error:  # --help
    assert error.code == 0 and '--help' in words


def check_python(words, monkeypatch):
  program, *words = words
  if program == '-m' and words[0] in ('http.server', 'pytest', 'mkdocs'):
    return
  if program == '-m' and words[0] == 'pip':
    check_pip(words[1:])
  elif program == '-m' and words[0] == 'maml_jax':
    check_main(words[1:])
  elif program == '-m':
    check_module(words[0], words[1:], monkeypatch)
  elif program == '-c':
    compile(words[0], words[0], 'exec')
  elif program == 'main.py':
    check_main(words)
  else:  # tests/test_examples.py executes the examples
    assert (REPOSITORY / program).parent.name == 'examples'
    assert (REPOSITORY / program).is_file()
    assert all(word.startswith('--output=') for word in words)
    assert not words or 'gallery.run(' in (REPOSITORY / program).read_text()


CHECKS = {'make': check_make, 'pip': check_pip, 'maml-jax': check_main}


@pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
@pytest.mark.parametrize('line', COMMANDS)
def test_command_is_valid(line, monkeypatch, capsys):
  if line.startswith(tuple(UNCHECKED)):
    return
  monkeypatch.chdir(REPOSITORY)
  # Benchmarks would restart with huge pages before they parse their flags.
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0')
  words = shlex.split(line)
  while re.match(r'[A-Z_]+=', words[0]):  # an environment variable
    words.pop(0)
  program, *words = words
  if program.endswith('python'):  # maybe of an environment
    check_python(words, monkeypatch)
  else:
    CHECKS[program](words)


@pytest.mark.slow
@pytest.mark.parametrize('line', EXECUTED)
def test_command_runs(line, tmp_path, monkeypatch, capsys, glyphs):
  """Training uses small data and a small network."""
  assert line in COMMANDS
  monkeypatch.setenv('MAML_JAX_CACHE', str(tmp_path))
  monkeypatch.setenv('MAML_JAX_DATA', str(glyphs))
  if 'demo' in line:
    small_run.use(monkeypatch, tmp_path)
  monkeypatch.chdir(REPOSITORY)
  workdir = f'--workdir={tmp_path / "run"}'
  argv = [*shlex.split(line)[2:], *EXECUTED[line], workdir]
  assert cli.main(argv) == 0, capsys.readouterr().err
  assert re.search(r'95 % .*interval', capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize(
  'page', [page for page in PAGES if code_blocks(page, 'python')], **IDS
)
def test_python_code_runs(page, tmp_path, monkeypatch, glyphs):
  """tests/test_packaging.py tests that the long training loop learns."""
  monkeypatch.setenv('MAML_JAX_DATA', str(glyphs))
  for name in ('checkpoints', 'configs'):
    os.symlink(REPOSITORY / name, tmp_path / name)
  monkeypatch.chdir(tmp_path)  # for files that the code writes
  namespace = {}
  with jax.numpy_rank_promotion('allow'):  # users may
    for text in code_blocks(page, 'python'):
      text = text.replace('range(5000)', 'range(1)')
      exec(compile(text, str(page), 'exec'), namespace)


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_code_blocks_have_a_known_language(page):
  languages = {name for name, _ in FENCE.findall(read_page(page))}
  assert languages <= LANGUAGES


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_targets_of_links_exist(page):
  """`mkdocs` checks the anchors in docs/."""
  text = FENCE.sub('', read_page(page))
  for target in re.findall(r'\]\((?!https?:)([^)]*)\)', text):
    assert (page.parent / target.partition('#')[0]).exists(), target


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_mentioned_files_exist(page):
  text = FENCE.sub('', read_page(page))
  for code in re.findall(r'`([\w-]+/[\w/.-]+)`', text):
    if code.split('/')[0] in FOLDERS and 'NAME' not in code:
      if not code.startswith(RUN_FOLDERS):
        assert (REPOSITORY / code).exists(), code


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_mentioned_modules_and_functions_exist(page):
  """Names such as `maml_jax.models.make_model`, in running text."""
  text = FENCE.sub('', read_page(page))
  for name in re.findall(r'`(maml_jax(?:\.\w+)+)[`(]', text):
    assert resolve(name) is not None, name


def resolve(name):
  try:
    return pkgutil.resolve_name(name)
  except (ImportError, AttributeError):
    return None


@pytest.mark.parametrize(
  'page, row, names',
  [
    ('data.md', '| `{}` |', (*data.SPECS, *data.REGRESSIONS, *AUGMENTATIONS)),
    ('norms.md', '| `{}` |', MODES),
    ('commands.md', '| `--mode={}` |', cli_flags.MODES),
    ('models.md', '| `examples/{}.py` |', EXAMPLES),
  ],
  ids=['data', 'norms', 'modes', 'examples'],
)
def test_table_is_complete(page, row, names):
  text = (DOCS / page).read_text()
  assert [name for name in names if row.format(name) not in text] == []


def test_every_flag_is_documented():
  text = (DOCS / 'commands.md').read_text()
  flags = vars(cli_flags.make_parser().parse_args([])).keys() - {'paths'}
  assert [name for name in flags if f'`--{name}' not in text] == []


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_environment_variables_exist(page):
  folders = [REPOSITORY / 'maml_jax', REPOSITORY / 'tests']
  files = [file for folder in folders for file in folder.rglob('*.py')]
  source = ''.join(file.read_text() for file in files)
  for name in re.findall(r'MAML_JAX_[A-Z]+', read_page(page)):
    assert f"'{name}'" in source, name


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The built site. Unknown links, anchors and modules are errors."""
  for name in ('mkdocs', 'material', 'mkdocstrings'):
    pytest.importorskip(name, reason='needs the extra docs')
  folder = tmp_path_factory.mktemp('site')
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', folder],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
  )
  assert done.returncode == 0, done.stderr
  return folder


@pytest.mark.slow
def test_site_has_the_api_and_loads_nothing_else(site):
  assert 'meta_gradient' in (site / 'api' / 'learner.html').read_text()
  for page in site.rglob('*.html'):
    text = page.read_text()
    assert not re.findall(r'<(?:script|img|iframe)[^>]+src="?https?:', text)
    assert not re.findall(r'<link[^>]+href="?https?:', text)


@pytest.mark.slow
@pytest.mark.parametrize('width', [400, 1280])
def test_site_index_fits_the_window_without_broken_images(site, width):
  with browser.open_page((site / 'index.html').as_uri(), width) as page:
    assert browser.layout_faults(page) == []
