"""Usage errors: each prints one line, exits with 2 and changes no file.

In command lines, `{c}` is a valid checkpoint of three ways, `{s}` a valid
support folder, `{m}` a valid model, `{d}` a directory of the test and `{p}` the
directory of the presets.
"""

import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import image_folders
import jax
import jax_settings
import pytest

import maml_jax
from maml_jax import cli
from maml_jax.utils.errors import NonFiniteError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ADAPT = '--mode=adapt --checkpoint={c} --output={d}/out '
PREDICT = '--mode=predict '


@pytest.fixture(scope='module', autouse=True)
def disable_compilation_cache():
  with jax_settings.compilation_cache_disabled():
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A directory with valid and invalid inputs."""
  path = tmp_path_factory.mktemp('usage')
  image_folders.make_checkpoint(path / 'checkpoint')
  image_folders.make_checkpoint(
    path / 'sinusoid',
    data__name='sinusoid',
    model__encoder='mlp',
    task__ways=1,
    val__ways=1,
    eval__ways=1,
  )
  image_folders.write_class_folders(path / 'support', 2)
  image_folders.write_class_folders(path / 'one', 2, classes=['bar'])
  for split in ('train', 'test'):
    image_folders.write_class_folders(path / 'splits' / split, 1)
  (path / 'nothing').mkdir()
  image_folders.write_class_folders(path / 'empty_class', 2)
  shutil.rmtree(path / 'empty_class' / 'disc')
  (path / 'empty_class' / 'disc').mkdir()
  image_folders.write_class_folders(path / 'texts', 2)
  for file in (path / 'texts' / 'disc').iterdir():
    file.unlink()
  (path / 'texts' / 'disc' / 'a.jpg').write_text('not an image')
  shutil.copytree(path / 'texts', path / 'broken')
  truncated = (path / 'support' / 'disc' / '0.png').read_bytes()[:100]
  (path / 'broken' / 'disc' / 'a.jpg').write_bytes(truncated)
  (path / 'file').write_text('a file')
  (path / 'config.py').write_text('def get_config(:')
  shutil.copytree(path / 'checkpoint', path / 'damaged')
  for file in (path / 'damaged' / 'state').rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[:-9])
  write_models(path)
  return path


def write_models(path):
  """Writes a valid model, a truncated one, a corrupt one, and a text."""
  names = image_folders.CLASSES
  images = [image_folders.draw_picture(name, 0) for name in names]
  learner = maml_jax.load(path / 'checkpoint')
  learner.fit(images, names, num_steps=0).save(path / 'model.npz')
  content = bytearray((path / 'model.npz').read_bytes())
  (path / 'truncated.npz').write_bytes(content[: len(content) // 2])
  content[len(content) // 2] ^= 255
  (path / 'corrupt.npz').write_bytes(content)
  (path / 'text.npz').write_text('not a model')


def arguments(folder, text: str) -> list[str]:
  """Returns the arguments of a command line with placeholders."""
  values = {
    'c': folder / 'checkpoint',
    's': folder / 'support',
    'd': folder,
    'm': folder / 'model.npz',
    'p': REPOSITORY / 'configs',
  }
  return text.format(**values).split()


def file_contents(folder) -> dict[pathlib.Path, bytes]:
  """Returns the content of all files except those under 'out'."""
  return {
    path: path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and 'out' not in path.relative_to(folder).parts
  }


USAGE_ERRORS = {
  'no_checkpoint': ('--mode=adapt --support={s}', 'needs --checkpoint=DIR'),
  'no_support': (ADAPT, 'needs --support=DIR'),
  'missing_support': (ADAPT + '--support={d}/nope', 'nope: no such folder'),
  'support_is_file': (ADAPT + '--support={d}/file', 'file: not a folder'),
  'support_is_image': (ADAPT + '--support={s}/bar/0.png', 'not a folder'),
  'one_class': (ADAPT + '--support={d}/one', "two or more .* only 'bar'"),
  'no_class': (ADAPT + '--support={d}/nothing', 'two or more .* found none'),
  'support_with_splits': (
    ADAPT + '--support={d}/splits',
    'contains the splits test, train instead of .*splits/train --query',
  ),
  'support_without_class_folders': (
    ADAPT + '--support={s}/bar',
    'expected two or more class folders',
  ),
  'empty_class': (
    ADAPT + '--support={d}/empty_class',
    "class 'disc' has no readable image",
  ),
  'text_named_jpg': (
    ADAPT + '--support={d}/texts',
    "class 'disc' has no readable image",
  ),
  'broken_image': (
    ADAPT + '--support={d}/broken',
    "class 'disc' has no readable image",
  ),
  'missing_checkpoint': (
    '--mode=adapt --checkpoint={d}/nope --support={s} --output={d}/out',
    'no such directory: .*nope',
  ),
  'checkpoint_is_file': (
    '--mode=adapt --checkpoint={d}/file --support={s} --output={d}/out',
    'no such directory: .*file',
  ),
  'directory_without_checkpoint': (
    '--mode=adapt --checkpoint={d}/nothing --support={s} --output={d}/out',
    'no best checkpoint in .*nothing',
  ),
  'damaged_checkpoint': (
    '--mode=adapt --checkpoint={d}/damaged --support={s} --output={d}/out',
    'damaged checkpoint .*damaged: ',
  ),
  'checkpoint_of_regression': (
    '--mode=adapt --checkpoint={d}/sinusoid --support={s} --output={d}/out',
    'was trained on regression: use a checkpoint trained on images',
  ),
  'config_of_other_model': (
    ADAPT + '--support={s} --config={p}/omniglot_20w1s.py',
    'with a different config: .*data.name: glyphs -> omniglot',
  ),
  'norm_without_statistics': (
    ADAPT + '--support={s} --eval.norm=global',
    'norm needs .*, which the checkpoint lacks',
  ),
  'missing_query': (
    ADAPT + '--support={s} --query={d}/nope',
    'no such file or folder: .*nope',
  ),
  'empty_query': (
    ADAPT + '--support={s} --query={d}/nothing',
    'no files in folder .*nothing',
  ),
  'unreadable_query': (
    ADAPT + '--support={s} --num_steps=0 --query {d}/texts/disc {d}/file',
    'none of the query images is readable',
  ),
  'output_in_support': (
    ADAPT + '--support={s} --output={s}/out',
    'would read its files as images',
  ),
  'output_in_query': (
    ADAPT + '--support={s} --query={d}/texts --output={d}/texts/bar/new',
    'would read its files as images',
  ),
  'forbidden_output': (
    ADAPT + '--support={s} --output=/proc/out',
    'cannot write to /proc/out: No such file or directory',
  ),
  'output_is_file': (
    ADAPT + '--support={s} --output={d}/file',
    'cannot write to .*file: File exists',
  ),
  'output_below_file': (
    ADAPT + '--support={s} --output={d}/file/out',
    'cannot write to .*file/out: Not a directory',
  ),
  'misspelled_head': (
    ADAPT + '--support={s} --head=prototypes',
    'did you mean prototype?',
  ),
  'num_steps_not_integer': (
    ADAPT + '--support={s} --num_steps=many',
    "--num_steps: invalid int value: 'many'",
  ),
  'negative_num_steps': (
    ADAPT + '--support={s} --num_steps=-1',
    '--num_steps=-1: must be at least 0',
  ),
  'no_model': (PREDICT + '{s}', 'needs --model=FILE'),
  'nothing_to_predict': (PREDICT + '--model={m}', 'needs image files'),
  'missing_model': (PREDICT + '--model={d}/nope {s}', 'no such model: .*nope'),
  'missing_model_and_image': (
    PREDICT + '--model={d}/nope no.jpg',
    'no such model: .*nope',
  ),
  'model_is_text': (PREDICT + '--model={d}/text.npz {s}', 'is not a model'),
  'model_is_image': (PREDICT + '--model={s}/bar/0.png {s}', 'is not a model'),
  'truncated_model': (
    PREDICT + '--model={d}/truncated.npz {s}',
    'or it is damaged',
  ),
  'corrupt_model': (PREDICT + '--model={d}/corrupt.npz {s}', 'it is damaged'),
  'model_is_checkpoint': (PREDICT + '--model={c} {s}', 'no such model'),
  'missing_image': (
    PREDICT + '--model={m} {s} no.jpg',
    'no such file or folder: no.jpg',
  ),
  'no_readable_image': (
    PREDICT + '--model={m} {d}/file',
    'none of the images is readable',
  ),
  'support_for_predict': (
    PREDICT + '--model={m} --support={s}',
    '--mode=predict does not accept --support; it belongs to --mode=adapt',
  ),
  'field_for_predict': (PREDICT + '--model={m} --seed=1', 'unknown argument'),
  'query_for_train': (
    '--query={s}',
    '--mode=train does not accept --query; it belongs to --mode=adapt',
  ),
  'misspelled_mode': ('--mode=adpat', 'did you mean adapt?'),
  'misspelled_flag': (ADAPT + '--suport={s}', 'did you mean --support?'),
  'misspelled_field': ('--eval.num_step=5', 'did you mean eval.num_steps?'),
  'misspelled_section': ('--config.iner.num_steps=5', 'did you mean inner.'),
  'misspelled_encoder': ('--model.encoder=resnet21', 'did you mean resnet12?'),
  'misspelled_data_set': ('--data.name=omnigot', 'did you mean omniglot?'),
  'value_of_other_type': ('--task.ways=five', 'task.ways=five: not an int'),
  'value_out_of_range': (
    '--task.shots=0',
    'task.shots=0: must be at least 1',
  ),
  'misspelled_config': (
    '--config={p}/omniglot.py',
    'did you mean .*omniglot_',
  ),
  'invalid_config_file': ('--config={d}/config.py', 'config.py'),
  'eval_without_training': (
    '--mode=eval --workdir={d}/nope',
    'no such directory: .*nope',
  ),
  'missing_data_root': (
    '--config={p}/folder.py --data.root={d}/nope --workdir={d}/out/run '
    '--train.meta_batch_size=8',
    'folder: no such directory: .*nope',
  ),
}


@pytest.mark.parametrize('name', USAGE_ERRORS)
def test_usage_error_is_one_line_and_changes_no_file(name, folder, capsys):
  text, message = USAGE_ERRORS[name]
  before = file_contents(folder)
  assert cli.main(arguments(folder, text)) == 2
  out, err = capsys.readouterr()
  *warnings, last = err.splitlines()
  assert re.search(f'^error: .*{message}', last), last
  assert all(line.startswith('warning: ') for line in warnings)
  assert 'Traceback' not in out + err
  assert file_contents(folder) == before


@pytest.mark.parametrize(
  'text',
  [
    '--mode=adapt --checkpoint={c} --support={d}/one',
    '--mode=predict --model={d}/nope {s}',
    '--mode=adapt --checkpoint={c} --support={s} --sede=1',
  ],
  ids=['one_class', 'missing_model', 'misspelled_flag'],
)
def test_main_py_exits_with_one_line(text, folder):
  main = str(REPOSITORY / 'main.py')
  process = subprocess.run(
    [sys.executable, main, *arguments(folder, text)],
    capture_output=True,
    text=True,
    cwd=folder,
  )
  assert re.fullmatch('error: .+\n', process.stderr)
  assert process.returncode == 2
  assert process.stdout == ''


@pytest.mark.parametrize(
  'text',
  [
    '--workdir={d}/out/new',
    '--mode=demo --workdir={d}/out/new',
    '--mode=eval --checkpoint={c} --workdir={d}/out/new',
    '--mode=report {d}',
    ADAPT + '--support={s}',
    PREDICT + '--model={m} {s}',
  ],
  ids=lambda text: text.split()[0].removeprefix('--'),
)
@pytest.mark.parametrize(
  'error, reason',
  [
    (AssertionError(), ''),  # cuda
    (
      RuntimeError("Unknown 'x'. (set JAX_PLATFORMS='' to choose)\nmore"),
      " (Unknown 'x'.)",
    ),
  ],
  ids=['assertion', 'runtime'],
)
def test_missing_device_is_one_line(
  text, error, reason, folder, capsys, monkeypatch
):
  def fail(*_):
    raise error

  monkeypatch.setattr(jax, 'devices', fail)
  before = jax.config.jax_platforms
  jax.config.update('jax_platforms', 'x')
  try:
    status = cli.main(arguments(folder, text))
  finally:
    jax.config.update('jax_platforms', before)
  assert status == 2
  assert capsys.readouterr().err == (
    f'error: JAX_PLATFORMS=x: JAX finds no such device{reason}; unset the '
    'variable to use any device, or install JAX for this platform\n'
  )
  assert not (folder / 'out' / 'new').exists()


def test_failed_write_keeps_existing_model(folder, tmp_path, capsys):
  """A limit on the size of files takes effect like a full disk."""
  model = tmp_path / 'model.npz'
  model.write_text('an older model')
  text = f'--mode=adapt --checkpoint={{c}} --support={{s}} --output={tmp_path}'
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    status = cli.main(arguments(folder, text + ' --num_steps=0'))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert status == 2
  line = f'error: cannot write {model}: File too large\n'
  *_, last = capsys.readouterr().err.splitlines(keepends=True)
  assert last == line
  assert os.listdir(tmp_path) == ['model.npz']
  assert model.read_text() == 'an older model'


@pytest.mark.parametrize(
  'error, status, line',
  [
    (
      OSError(28, 'No space left on device', '/x/y'),
      2,
      'error: /x/y: No space left on device\n',
    ),
    (
      PermissionError(13, 'Permission denied', '/x'),
      2,
      'error: /x: Permission denied\n',
    ),
    (
      NonFiniteError('a loss is not finite'),
      1,
      'error: a loss is not finite\n',
    ),
    (KeyboardInterrupt(), 130, ''),
  ],
  ids=['full_disk', 'permission', 'non_finite', 'interrupt'],
)
def test_expected_errors_have_exit_status_and_one_line(
  error, status, line, capsys, monkeypatch
):
  def fail(*_):
    raise error

  monkeypatch.setattr(cli, 'mode_function', lambda name: fail)
  assert cli.main([]) == status
  assert capsys.readouterr().err == line


def test_unexpected_error_is_raised(monkeypatch):
  def fail(*_):
    raise KeyError('a bug')

  monkeypatch.setattr(cli, 'mode_function', lambda name: fail)
  with pytest.raises(KeyError):
    cli.main([])
