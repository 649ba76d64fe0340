"""What people get wrong: each is answered by one clear line, and loses nothing.

`{c}` is a sound checkpoint of three ways, `{s}` a sound support folder, `{m}` a
sound model, `{d}` a directory of the test, `{p}` the presets.
"""

import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import image_folders
import pytest

from maml_jax import cli
from maml_jax.fewshot import classifier
from maml_jax.utils import compilation_cache
from maml_jax.utils.errors import NonFiniteError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PRESET = REPOSITORY / 'configs' / 'glyphs_5w1s.py'
ADAPT = '--mode=adapt --checkpoint={c} --output={d}/out '
PREDICT = '--mode=predict '


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """The sound things, and what is wrong with others."""
  path = tmp_path_factory.mktemp('wrong')
  image_folders.make_checkpoint(path / 'checkpoint')
  image_folders.make_checkpoint(
    path / 'sinusoid',
    data__name='sinusoid',
    model__encoder='mlp',
    task__ways=1,
    val__ways=1,
    eval__ways=1,
  )
  image_folders.folder(path / 'support', 2)
  image_folders.folder(path / 'one', 2, classes=['bar'])
  (path / 'nothing').mkdir()
  image_folders.folder(path / 'hollow', 2)
  shutil.rmtree(path / 'hollow' / 'disc')
  (path / 'hollow' / 'disc').mkdir()
  image_folders.folder(path / 'texts', 2)
  for file in (path / 'texts' / 'disc').iterdir():
    file.unlink()
  (path / 'texts' / 'disc' / 'a.jpg').write_text('this is no image')
  shutil.copytree(path / 'texts', path / 'broken')
  cut = (path / 'support' / 'disc' / '0.png').read_bytes()[:100]
  (path / 'broken' / 'disc' / 'a.jpg').write_bytes(cut)
  (path / 'file').write_text('a file')
  (path / 'text.npz').write_text('this is no model')
  shutil.copytree(path / 'checkpoint', path / 'damaged')
  for file in (path / 'damaged' / 'state').rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[:-9])
  (path / 'config.py').write_text('def get_config(:')
  few = classifier.load(path / 'checkpoint')
  images = [image_folders.picture(name, 0) for name in image_folders.CLASSES]
  few.fit(images, image_folders.CLASSES, num_steps=0).save(path / 'model.npz')
  whole = (path / 'model.npz').read_bytes()
  (path / 'cut.npz').write_bytes(whole[: len(whole) // 2])
  altered = bytearray(whole)
  altered[len(whole) // 2] ^= 255
  (path / 'altered.npz').write_bytes(altered)
  return path


def told(place, words: str) -> list[str]:
  """The words of a command line."""
  names = {
    'c': place / 'checkpoint',
    's': place / 'support',
    'd': place,
    'm': place / 'model.npz',
    'p': REPOSITORY / 'configs',
  }
  return words.format(**names).split()


def contents(place) -> dict[pathlib.Path, bytes]:
  return {
    path: path.read_bytes()
    for path in place.rglob('*')
    if path.is_file() and path.is_relative_to(place) and 'out' not in path.parts
  }


WRONG = {
  'no checkpoint': ('--mode=adapt --support={s}', 'needs --checkpoint=DIR'),
  'no support': (ADAPT, 'needs --support=DIR'),
  'support missing': (ADAPT + '--support={d}/nope', 'no such folder: .*nope'),
  'support is a file': (ADAPT + '--support={d}/file', 'file is a file'),
  'support is an image': (ADAPT + '--support={s}/bar/0.png', 'is a file'),
  'one class': (ADAPT + '--support={d}/one', "two .*; there is only 'bar'"),
  'no class': (ADAPT + '--support={d}/nothing', 'of two classes or more'),
  'images, no classes': (ADAPT + '--support={s}/bar', 'two classes or more'),
  'empty class': (ADAPT + '--support={d}/hollow', "'disc' has no image"),
  'text called jpg': (ADAPT + '--support={d}/texts', "'disc' has no image"),
  'broken image': (ADAPT + '--support={d}/broken', "'disc' has no image"),
  'checkpoint missing': (
    '--mode=adapt --checkpoint={d}/nope --support={s} --output={d}/out',
    'no such directory: .*nope',
  ),
  'checkpoint is a file': (
    '--mode=adapt --checkpoint={d}/file --support={s} --output={d}/out',
    'no such directory: .*file',
  ),
  'no checkpoint there': (
    '--mode=adapt --checkpoint={d}/nothing --support={s} --output={d}/out',
    'no best checkpoint in .*nothing',
  ),
  'checkpoint damaged': (
    '--mode=adapt --checkpoint={d}/damaged --support={s} --output={d}/out',
    'damaged checkpoint .*damaged: ',
  ),
  'checkpoint of a regression': (
    '--mode=adapt --checkpoint={d}/sinusoid --support={s} --output={d}/out',
    'is of a regression, not of images',
  ),
  'config of another model': (
    ADAPT + '--support={s} --config={p}/omniglot_20w1s.py',
    'is of another config: .*data.name: glyphs -> omniglot',
  ),
  'norm it was not trained for': (
    ADAPT + '--support={s} --eval.norm=global',
    'norm needs .*, which the checkpoint lacks',
  ),
  'query missing': (
    ADAPT + '--support={s} --query={d}/nope',
    'no such file or folder: .*nope',
  ),
  'query empty': (ADAPT + '--support={s} --query={d}/nothing', 'holds no'),
  'query unreadable': (
    ADAPT + '--support={s} --num_steps=0 --query {d}/texts/disc {d}/file',
    'none of the images that were asked for can be read',
  ),
  'output in support': (
    ADAPT + '--support={s} --output={s}/out',
    'would be taken for an image next time',
  ),
  'output in query': (
    ADAPT + '--support={s} --query={d}/texts --output={d}/texts/bar/new',
    'would be taken for an image next time',
  ),
  'output forbidden': (
    ADAPT + '--support={s} --output=/proc/out',
    'cannot write to /proc/out: No such file or directory',
  ),
  'output is a file': (
    ADAPT + '--support={s} --output={d}/file',
    'cannot write to .*file: File exists',
  ),
  'output below a file': (
    ADAPT + '--support={s} --output={d}/file/out',
    'cannot write to .*file/out: Not a directory',
  ),
  'head misspelt': (
    ADAPT + '--support={s} --head=prototypes',
    'did you mean prototype?',
  ),
  'steps are no number': (
    ADAPT + '--support={s} --num_steps=many',
    "--num_steps: invalid int value: 'many'",
  ),
  'steps below 0': (ADAPT + '--support={s} --num_steps=-1', 'at least 0'),
  'no model': (PREDICT + '{s}', 'needs --model=FILE'),
  'nothing to predict': (PREDICT + '--model={m}', 'needs images'),
  'model missing': (PREDICT + '--model={d}/nope {s}', 'no such model: .*no'),
  'model is a text': (PREDICT + '--model={d}/text.npz {s}', 'is no model'),
  'model is an image': (PREDICT + '--model={s}/bar/0.png {s}', 'is no mo'),
  'model is cut': (PREDICT + '--model={d}/cut.npz {s}', 'or damaged'),
  'model is altered': (PREDICT + '--model={d}/altered.npz {s}', 'or damaged'),
  'model is a checkpoint': (PREDICT + '--model={c} {s}', 'no such model'),
  'image missing': (PREDICT + '--model={m} {s} no.jpg', 'no such .*: no.jpg'),
  'no image': (PREDICT + '--model={m} {d}/file', 'none of the images'),
  'support for predict': (
    PREDICT + '--model={m} --support={s}',
    '--mode=predict takes no --support, only --mode=adapt does',
  ),
  'field for predict': (PREDICT + '--model={m} --seed=1', 'unknown argument'),
  'query for train': ('--query={s}', '--mode=train takes no --query, only'),
  'mode misspelt': ('--mode=adpat', 'did you mean adapt?'),
  'flag misspelt': (ADAPT + '--suport={s}', 'did you mean --support?'),
  'field misspelt': ('--eval.num_step=5', 'did you mean eval.num_steps?'),
  'section misspelt': ('--config.iner.num_steps=5', 'did you mean inner.'),
  'encoder misspelt': ('--model.encoder=resnet21', 'did you mean resnet12?'),
  'data set misspelt': ('--data.name=omnigot', 'did you mean omniglot?'),
  'value of another type': ('--task.ways=five', 'task.ways=five: not an int'),
  'value out of range': ('--task.shots=0', 'task.shots=0: at least 1'),
  'config misspelt': ('--config={p}/omniglot.py', 'did you mean .*omniglot_'),
  'config broken': ('--config={d}/config.py', 'config.py'),
  'nothing trained': ('--mode=eval --workdir={d}/nope', 'no best checkpoint'),
  'images missing': (
    '--config={p}/folder.py --data.root={d}/nope --workdir={d}/out/run '
    '--train.meta_batch_size=8',
    'folder: no such directory: .*nope',
  ),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_use_is_one_clear_line(name, place, capsys, monkeypatch):
  monkeypatch.setenv('MAML_JAX_CACHE', str(place / 'out' / 'cache'))
  monkeypatch.setattr(
    compilation_cache, 'enable_compilation_cache', lambda **_: None
  )
  words, message = WRONG[name]
  before = contents(place)
  assert cli.main(told(place, words)) == 2
  out, err = capsys.readouterr()
  *warnings, last = err.splitlines()
  assert re.search(f'^error: .*{message}', last), last
  assert all(line.startswith('warning: ') for line in warnings)
  assert 'Traceback' not in out + err
  assert contents(place) == before


@pytest.mark.parametrize(
  'words',
  [
    '--mode=adapt --checkpoint={c} --support={d}/one',
    '--mode=predict --model={d}/nope {s}',
    '--mode=adapt --checkpoint={c} --support={s} --sede=1',
  ],
)
def test_as_a_process_too(words, place):
  argv = [sys.executable, str(REPOSITORY / 'main.py'), *told(place, words)]
  done = subprocess.run(argv, capture_output=True, text=True, cwd=place)
  assert done.returncode == 2
  assert re.fullmatch('error: .+\n', done.stderr)
  assert done.stdout == ''


def test_full_disk_keeps_what_there_was(place, tmp_path, capsys, monkeypatch):
  """The kernel refuses files above a size, as it does on a full disk."""
  monkeypatch.setattr(
    compilation_cache, 'enable_compilation_cache', lambda **_: None
  )
  old = tmp_path / 'model.npz'
  old.write_text('an older model')
  words = f'--mode=adapt --checkpoint={{c}} --support={{s}} --output={tmp_path}'
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    status = cli.main(told(place, words + ' --num_steps=0'))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert status == 2
  line = f'error: cannot write {old}: File too large\n'
  assert capsys.readouterr().err == line
  assert os.listdir(tmp_path) == ['model.npz']
  assert old.read_text() == 'an older model'


@pytest.mark.parametrize(
  'raised, status, line',
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
)
def test_what_befalls_a_mode(raised, status, line, capsys, monkeypatch):
  def fail(*_):
    raise raised

  monkeypatch.setattr(cli, 'mode_function', lambda name: fail)
  assert cli.main([]) == status
  assert capsys.readouterr().err == line


def test_a_bug_is_not_hidden(monkeypatch):
  def fail(*_):
    raise KeyError('a bug')

  monkeypatch.setattr(cli, 'mode_function', lambda name: fail)
  with pytest.raises(KeyError):
    cli.main([])
