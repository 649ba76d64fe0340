"""The checkpoints in the repository."""

import pathlib
import re

import pytest

from maml_jax import config as config_lib
from maml_jax.evaluation import evaluate
from maml_jax.experiment import checkpoint

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# A folder NAME_run holds the state of an unfinished training, not a checkpoint.
SHIPPED = sorted(
  path
  for path in (REPOSITORY / 'checkpoints').iterdir()
  if not path.name.endswith('_run')
)
ids = {'ids': lambda path: path.name}


def test_names_of_shipped_checkpoints():
  names = [path.name for path in SHIPPED]
  assert names == [
    'glyphs_5w1s',
    'mini_5w1s',
    'mini_proto_net',
    'omniglot_5w1s',
  ]


@pytest.mark.parametrize('path', SHIPPED, **ids)
def test_checkpoint_is_small_valid_and_matches_its_preset(path):
  files = [file for file in path.rglob('*') if file.is_file()]
  assert sum(file.stat().st_size for file in files) < 1_000_000
  saved = checkpoint.load(path)
  assert saved.opt_state == []
  preset = config_lib.load(str(REPOSITORY / 'configs' / f'{path.name}.py'))
  epochs = ('train.num_epochs', 'train.init_from')
  ignored = ('eval', 'precision', 'val.num_tasks', *epochs)
  assert not config_lib.config_differences(saved.config, preset, ignored)


@pytest.mark.parametrize('path', SHIPPED, **ids)
def test_results_list_the_checkpoint(path):
  text = (REPOSITORY / 'RESULTS.md').read_text()
  step = f'{checkpoint.load(path).step:,}'
  (line,) = re.findall(rf'^\| `checkpoints/{path.name}`.*$', text, re.M)
  assert f'{step} meta-iterations' in line and '±' in line


@pytest.mark.slow
def test_glyphs_checkpoint_reaches_its_listed_accuracy(tmp_path):
  """Within 1.5 times the 95 % interval over 40 tasks; needs no data."""
  path = REPOSITORY / 'checkpoints' / 'glyphs_5w1s'
  fields = ['--eval.num_tasks=40', '--eval.curve_tasks=0']
  config = config_lib.override(config_lib.read_saved(path), fields)
  result = evaluate.evaluate(config, path, tmp_path)
  text = (REPOSITORY / 'RESULTS.md').read_text()
  found = re.search(r'^\| `checkpoints/glyphs_5w1s`.*?([\d.]+) ±', text, re.M)
  difference = abs(100 * result['accuracy'] - float(found[1]))
  assert difference < 1.5 * 100 * result['interval']
