"""The checkpoints that come with the repository."""

import pathlib
import re

import pytest

from maml_jax import config as config_lib
from maml_jax.evaluation import evaluate
from maml_jax.experiment import checkpoint

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = sorted((REPOSITORY / 'checkpoints').iterdir())
ids = {'ids': lambda path: path.name}


def test_there_are_three():
  names = [path.name for path in SHIPPED]
  assert names == ['glyphs_5w1s', 'mini_5w1s', 'omniglot_5w1s']


@pytest.mark.parametrize('path', SHIPPED, **ids)
def test_is_small_and_sound_and_of_its_preset(path):
  files = [file for file in path.rglob('*') if file.is_file()]
  assert sum(file.stat().st_size for file in files) < 1_000_000
  saved = checkpoint.load(path)
  assert saved.opt_state == []
  preset = config_lib.load(str(REPOSITORY / 'configs' / f'{path.name}.py'))
  ignored = ('eval', 'train.num_epochs', 'val.num_tasks')
  assert not config_lib.config_differences(saved.config, preset, ignored)


@pytest.mark.parametrize('path', SHIPPED, **ids)
def test_has_its_line_among_the_results(path):
  text = (REPOSITORY / 'RESULTS.md').read_text()
  step = f'{checkpoint.load(path).step:,}'
  (line,) = re.findall(rf'^\| `checkpoints/{path.name}`.*$', text, re.M)
  assert f'{step} meta-iterations' in line and '±' in line


def test_reaches_what_the_results_say(tmp_path):
  """The glyphs, which need no data, within what luck allows 40 tasks."""
  path = REPOSITORY / 'checkpoints' / 'glyphs_5w1s'
  fields = ['--eval.num_tasks=40', '--eval.curve_tasks=0']
  config = config_lib.override(config_lib.read_saved(path), fields)
  result = evaluate.evaluate(config, path, tmp_path)
  text = (REPOSITORY / 'RESULTS.md').read_text()
  found = re.search(r'^\| `checkpoints/glyphs_5w1s`.*?([\d.]+) ±', text, re.M)
  difference = abs(100 * result['accuracy'] - float(found[1]))
  assert difference < 1.5 * 100 * result['interval']
