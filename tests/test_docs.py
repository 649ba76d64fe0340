"""What README.md and docs/ tell people to type works, and links lead somewhere.

Every fence is looked at: Python is executed; of shell commands some are run,
shrunk, and the flags of all others are read by the parsers that will read them.
So are commands in running text. What is not looked at is listed, with a reason.
"""

import argparse
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib

import jax
import pytest
import small_run

from maml_jax import cli, data
from maml_jax import config as config_lib
from maml_jax.data.augment import AUGMENTATIONS
from maml_jax.models.norm import MODES

REPOSITORY = pathlib.Path(__file__).parent.parent
README, DOCS = REPOSITORY / 'README.md', REPOSITORY / 'docs'
PAGES = [README, *sorted(DOCS.rglob('*.md'))]
PRESET = str(REPOSITORY / 'configs' / 'glyphs_5w1s.py')
CHECKPOINT = REPOSITORY / 'checkpoints' / 'glyphs_5w1s'
TESTS = pathlib.Path(__file__).parent
IDS = {'ids': lambda path: str(path.relative_to(REPOSITORY))}

FENCE = re.compile(r'^ *```(\w*)[^\n]*\n(.*?)^ *```', re.DOTALL | re.MULTILINE)
LANGUAGES = {'sh', 'python', 'text'}  # text is no command
TOOLS = ('python ', 'make', 'pip ')  # with which commands in a sentence begin

EXAMPLES = [path.stem for path in (REPOSITORY / 'examples').glob('*.py')]
FOLDERS = 'benchmarks configs docs examples maml_jax notebooks tests'.split()

# Commands that nothing here can check.
EXCEPTIONS = {
  'git clone': 'the address is not known here',
  'cd ': 'into a clone',
  'python train.py': "PyTorch-MAML's",
  'python test.py': "PyTorch-MAML's",
}
# Run as they stand, but smaller: what to add.
RUN = {
  'python main.py --mode=demo': small_run.flags(),
  'python main.py --mode=eval --checkpoint=checkpoints/glyphs_5w1s': [
    '--eval.num_tasks=8',
    '--eval.curve_tasks=0',
  ],
}


def fences(path, language):
  return [
    text for name, text in FENCE.findall(path.read_text()) if name == language
  ]


def commands(path):
  """All commands of a page, one a line, comments cut."""
  lines = []
  for text in fences(path, 'sh'):
    for line in re.sub(r'\\\n\s*', '', text).splitlines():
      line = re.sub(r'(^|\s+)#.*', '', line).strip()
      lines.extend(line.split(' && ') if line else [])
  outside = FENCE.sub('', path.read_text())
  for code in re.findall(r'(?<!`)`([^`]+)`(?!`)', outside):
    code = ' '.join(code.split())
    if code.startswith(TOOLS) and code not in ('make', 'python main.py'):
      lines.append(code)
  return lines


ALL = [(path, line) for path in PAGES for line in commands(path)]
LINES = sorted({line for _, line in ALL})


class Parsed(BaseException):
  """Raised in the place of what a program does after it has read its flags."""


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
  for extras in re.findall(r'\.\[(.+)\]', ' '.join(words)):
    check_extras(extras.split(','))


def check_main(words):
  """Modes, flags, presets and fields exist and go together."""
  if words == ['--help']:
    words = []
  flags, overrides = cli.parse(words)
  takes = cli.MODES[flags.mode].flags
  if 'config' not in takes:
    return
  # A checkpoint that is named in passing cannot be asked for its config.
  source = flags.checkpoint or flags.workdir or ''
  if source.startswith('checkpoints/') and not flags.config:
    saved = config_lib.read_saved(CHECKPOINT)
    config_lib.override(saved, overrides)
  elif 'NAME' not in str(flags.config):
    config_lib.load(flags.config or PRESET, overrides)


def check_module(name, words, monkeypatch):
  """Runs a module until it has read its flags; what is left are fields."""
  parse = argparse.ArgumentParser.parse_known_args

  def then_stop(*args, **kw):
    _, left = parse(*args, **kw)
    config_lib.load(PRESET, left)
    raise Parsed

  monkeypatch.setattr(argparse.ArgumentParser, 'parse_known_args', then_stop)
  monkeypatch.setattr(sys, 'argv', [name, *words])
  try:
    with pytest.raises(Parsed):
      runpy.run_module(name, run_name='__main__')
  except SystemExit as error:  # --help
    assert error.code == 0 and '--help' in words


def check_python(words, monkeypatch):
  program, *words = words
  if program == '-m' and words[0] in ('http.server', 'pytest', 'mkdocs'):
    return
  if program == '-m':
    check_module(words[0], words[1:], monkeypatch)
  elif program == '-c':
    compile(words[0], words[0], 'exec')
  elif program == 'main.py':
    check_main(words)
  else:  # an example, which has a test of its own
    assert (REPOSITORY / program).parent.name == 'examples'
    assert (REPOSITORY / program).is_file() and not words


CHECKS = {'make': check_make, 'pip': check_pip}


@pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
@pytest.mark.parametrize('line', LINES)
def test_command_is_understood(line, monkeypatch, capsys):
  if line.startswith(tuple(EXCEPTIONS)):
    return
  monkeypatch.chdir(REPOSITORY)
  # Benchmarks ask for huge pages by starting anew before they read flags.
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0')
  tool, *words = shlex.split(line)
  if tool == 'python':
    check_python(words, monkeypatch)
  else:
    CHECKS[tool](words)


@pytest.mark.parametrize('line', RUN)
def test_command_runs(line, tmp_path, monkeypatch, capsys, glyphs):
  """Where it trains, data and network are tiny ones."""
  assert line in LINES
  monkeypatch.setenv('MAML_JAX_CACHE', str(tmp_path))
  monkeypatch.setenv('MAML_JAX_DATA', str(glyphs))
  if 'demo' in line:
    small_run.use(monkeypatch, tmp_path)
  monkeypatch.chdir(REPOSITORY)
  words = [*shlex.split(line)[2:], *RUN[line], f'--workdir={tmp_path / "run"}']
  assert cli.main(words) == 0, capsys.readouterr().err
  assert '(95 % interval over' in capsys.readouterr().out


@pytest.mark.parametrize(
  'page',
  [page for page in PAGES if page != README and fences(page, 'python')],
  **IDS,
)
def test_python_runs(page, monkeypatch, glyphs):
  """That of the README learns in tests/test_packaging.py."""
  monkeypatch.setenv('MAML_JAX_DATA', str(glyphs))
  monkeypatch.chdir(REPOSITORY)
  namespace = {}
  with jax.numpy_rank_promotion('allow'):  # users may
    for text in fences(page, 'python'):
      exec(compile(text, str(page), 'exec'), namespace)


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_fences_are_of_a_known_language(page):
  languages = {name for name, _ in FENCE.findall(page.read_text())}
  assert languages <= LANGUAGES


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_links_lead_somewhere(page):
  """Anchors within docs/ are seen to by mkdocs."""
  text = FENCE.sub('', page.read_text())
  for target in re.findall(r'\]\((?!https?:)([^)]*)\)', text):
    assert (page.parent / target.partition('#')[0]).exists(), target


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_files_that_are_named_exist(page):
  text = FENCE.sub('', page.read_text())
  for code in re.findall(r'`([\w-]+/[\w/.-]+)`', text):
    if code.split('/')[0] in FOLDERS and 'NAME' not in code:
      assert (REPOSITORY / code).exists(), code


@pytest.mark.parametrize(
  'page, form, names',
  [
    ('data.md', '| `{}` |', (*data.SPECS, *data.REGRESSIONS, *AUGMENTATIONS)),
    ('norms.md', '| `{}` |', MODES),
    ('commands.md', '| `--mode={}` |', cli.MODES),
    ('models.md', '| `examples/{}.py` |', EXAMPLES),
  ],
)
def test_page_names_what_there_is(page, form, names):
  rows = (DOCS / page).read_text()
  assert [name for name in names if form.format(name) not in rows] == []


def test_every_flag_is_explained():
  text = (DOCS / 'commands.md').read_text()
  flags = vars(cli.make_parser().parse_args([])).keys() - {'paths'}
  assert [name for name in flags if f'`--{name}' not in text] == []


@pytest.mark.parametrize('page', PAGES, **IDS)
def test_environment_variables_exist(page):
  files = [*(REPOSITORY / 'maml_jax').rglob('*.py'), *TESTS.glob('*.py')]
  source = ''.join(file.read_text() for file in files)
  for name in re.findall(r'MAML_JAX_[A-Z]+', page.read_text()):
    assert f"'{name}'" in source, name


def test_site_builds(tmp_path):
  """Strictly: an unknown link, anchor or module is an error."""
  for name in ('mkdocs', 'material', 'mkdocstrings'):
    pytest.importorskip(name, reason='needs the extra docs')
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', tmp_path],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'api' / 'learner.html').read_text().count('meta_gradient')
  for page in tmp_path.rglob('*.html'):
    text = page.read_text()
    assert not re.findall(r'<(?:script|img|iframe)[^>]+src="?https?:', text)
    assert not re.findall(r'<link[^>]+href="?https?:', text)
