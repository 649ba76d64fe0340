"""--mode=adapt and --mode=predict, and the terminal output of all modes."""

import csv
import errno
import io
import json
import pathlib
import re
import shutil
import sys
import warnings

import image_folders
import jax_settings
import numpy as np
import path_names
import pytest
from hypothesis import given, settings
from PIL import Image

import maml_jax
from maml_jax import cli, cli_flags, data
from maml_jax.fewshot import contact_sheet
from maml_jax.fewshot import image_folders as folders_lib
from maml_jax.utils import console, progress
from maml_jax.utils.errors import UserError

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'glyphs_5w1s.py'


class Workspace:
  """A checkpoint, support and query folders, and the output of `adapt`.

  Classes have 3, 4 and 3 support images. There are unreadable files, a file
  beside the class folders, and a query image that is also a support image.
  """

  def __init__(self, path):
    self.path = path
    self.output = path / 'out'
    self.checkpoint = image_folders.make_checkpoint(path / 'checkpoint')
    self.support = image_folders.write_class_folders(path / 'support', 3)
    image = image_folders.draw_picture('disc', 9)
    image.save(self.support / 'disc' / 'more.png')
    (self.support / 'bar' / 'notes.txt').write_text('not an image')
    (self.support / 'README').write_text('not in a class folder')
    self.query = image_folders.write_class_folders(path / 'query', 7, start=50)
    (self.query / 'bar' / 'truncated.jpg').write_bytes(b'\xff\xd8\xff\xe0')
    support_image = self.support / 'frame' / '0.png'
    shutil.copy(support_image, self.query / 'frame' / 'in_support.png')
    image = image_folders.draw_picture('bar', 77)
    image.save(self.query / 'line\nbreak.png')


def run(capsys, *arguments):
  """Executes a command line; returns its status, stdout and stderr."""
  status = cli.main([str(argument) for argument in arguments])
  out, err = capsys.readouterr()
  return status, out, err


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
  return Workspace(tmp_path_factory.mktemp('fewshot'))


@pytest.fixture(scope='module', autouse=True)
def disable_compilation_cache():
  with jax_settings.compilation_cache_disabled():
    yield


@pytest.fixture(scope='module')
def adapted(workspace):
  """The result of --mode=adapt: status, stdout, stderr."""
  out, err = io.StringIO(), io.StringIO()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'stdout', out)
    patch.setattr(sys, 'stderr', err)
    status = cli.main(
      [
        '--mode=adapt',
        f'--checkpoint={workspace.checkpoint}',
        f'--support={workspace.support}',
        f'--output={workspace.output}',
        '--head=prototype',
        '--num_steps=1',
        '--query',
        str(workspace.query),
        str(workspace.query / 'bar' / '50.webp'),
      ]
    )
  return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope='module')
def saved(workspace, adapted):
  """The content of predictions.json."""
  return json.loads((workspace.output / 'predictions.json').read_text())


def test_adapt_prints_accuracies_and_names_its_files(workspace, adapted, saved):
  status, out, _ = adapted
  assert status == 0
  lines = out.splitlines()
  assert lines[0] == (
    '3 classes with 3 to 4 images each; 1 inner steps, initial head: '
    'prototype, batch norm: support'
  )
  values = r'(\S+) % \((\d+) of (\d+); 95 % confidence interval \d+ to \d+ %\)'
  left_out = re.fullmatch(f'leave-one-out accuracy on .*: {values}', lines[1])
  accuracy = re.fullmatch(f'accuracy on .*: {values}', lines[-2])
  assert left_out[3] == '10' and accuracy[3] == '21'
  assert float(accuracy[1]) > 80  # the shapes are easy to distinguish
  assert lines[-1] == (
    f'saved in {workspace.output}: contact_sheet.png, model.npz, '
    'predictions.csv, predictions.json'
  )
  assert saved['accuracy']['right'] == int(accuracy[2])
  assert saved['leave_one_out']['images'] == 10
  assert saved['classes'] == {'bar': 3, 'disc': 4, 'frame': 3}


def test_files_and_table_agree(workspace, adapted, saved):
  _, out, _ = adapted
  with open(workspace.output / 'predictions.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(saved['predictions']) == 23
  for row, known in zip(rows, saved['predictions'], strict=True):
    assert list(row) == ['file', 'class', 'probability']
    best = max(known['probabilities'], key=known['probabilities'].get)
    assert row['class'] == known['class'] == best
    assert float(row['probability']) == pytest.approx(
      known['probabilities'][best], abs=1e-6
    )
    assert sum(known['probabilities'].values()) == pytest.approx(1, abs=1e-5)
    percent = f'{100 * known["probability"]:.1f} %'
    assert re.search(rf'{re.escape(row["file"])} +{best} +{percent}', out)


def test_adapt_warns_about_skipped_and_duplicate_files(
  workspace, adapted, saved
):
  _, _, err = adapted
  reasons = {
    f'{workspace.support}/bar/notes.txt': 'not an image',
    f'{workspace.query}/bar/truncated.jpg': 'not an image',
  }
  assert saved['skipped'] == reasons
  in_support = f'{workspace.query}/frame/in_support.png'
  expected = {
    f'warning: skipped {file}: {reason}' for file, reason in reasons.items()
  } | {
    f'warning: skipped {workspace.support}/README: not in a class folder',
    f'warning: {workspace.query}/bar/50.webp is given twice; it is classified '
    'once',
    f'warning: {in_support} is also in the support set: it does not count '
    'towards the accuracy',
  }
  assert set(err.splitlines()) == expected
  files = [p['file'] for p in saved['predictions'] if p['in_support']]
  assert files == [in_support]


def test_folder_names_are_true_classes(workspace, saved):
  for known in saved['predictions']:
    folder = pathlib.Path(known['file']).parent
    truth = None if folder == workspace.query else folder.name
    assert known['truth'] == truth


def test_predict_reproduces_predictions_of_adapt(workspace, saved, capsys):
  known = [p for p in saved['predictions'] if p['truth'] == 'disc'][:3]
  files = [p['file'] for p in known]
  status, out, err = run(
    capsys, '--mode=predict', f'--model={workspace.output}', *files
  )
  assert (status, err) == (0, '')
  for line, p in zip(out.splitlines(), known, strict=True):
    file, name, percent, _ = line.split()
    assert (file, name) == (p['file'], p['class'])
    assert float(percent) == pytest.approx(100 * p['probability'], abs=0.051)
  output = workspace.path / 'alone'
  status, out, _ = run(
    capsys,
    '--mode=predict',
    '--model',
    workspace.output / 'model.npz',
    files[1],
    '--output',
    output,
  )
  assert status == 0
  assert out.endswith(
    f'saved in {output}: contact_sheet.png, predictions.csv, predictions.json\n'
  )
  content = json.loads((output / 'predictions.json').read_text())
  (alone,) = content['predictions']
  assert alone['probabilities'] == known[1]['probabilities']  # bit-exact


def test_predict_warns_about_skipped_files_and_escapes_names(workspace, capsys):
  file = workspace.query / 'line\nbreak.png'
  arguments = ['--mode=predict', f'--model={workspace.output}', file]
  skipped = workspace.support / 'README'
  status, out, err = run(capsys, *arguments, skipped)
  assert status == 0
  assert 'line\\nbreak.png' in out and len(out.splitlines()) == 1
  assert err == f'warning: skipped {skipped}: not an image\n'
  status, quiet, err = run(capsys, *arguments, skipped, '--quiet')
  assert (status, quiet, err) == (0, out, '')


def test_load_classifier_loads_model_of_adapt(workspace, saved):
  classifier = maml_jax.load_classifier(workspace.output / 'model.npz')
  p = saved['predictions'][0]
  image = np.asarray(Image.open(p['file']).convert('L'))
  row = classifier.predict_proba([image])[0]
  assert row.max() == pytest.approx(p['probability'], abs=0.02)
  assert classifier.predict([image]) == [p['class']]


def test_adapt_with_one_image_per_class_and_no_query(workspace, capsys):
  support = image_folders.write_class_folders(workspace.path / 'singles', 1)
  output = workspace.path / 'singles-out'
  status, out, err = run(
    capsys,
    '--mode=adapt',
    f'--checkpoint={workspace.checkpoint}',
    '--quiet',
    f'--support={support}',
    f'--output={output}',
    '--num_steps=1',
    '--config=glyphs_5w1s',
    '--task.ways=4',
  )
  assert status == 2 and 'with a different config' in err and out == ''
  status, out, err = run(
    capsys,
    '--mode=adapt',
    f'--checkpoint={workspace.checkpoint}',
    f'--support={support}',
    f'--output={output}',
    '--num_steps=1',
  )
  assert (status, err) == (0, '')
  assert 'classes with a single image: bar, disc, frame' in out
  assert 'initial head: zero' in out
  files = ['contact_sheet.png', 'model.npz', 'predictions.json']
  assert out.endswith(f'saved in {output}: {", ".join(files)}\n')
  assert sorted(p.name for p in output.iterdir()) == files


def test_adaptations_do_not_share_files(workspace, capsys, monkeypatch):
  monkeypatch.chdir(workspace.path)
  for parent in ('A', 'B'):
    image_folders.write_class_folders(pathlib.Path(parent, 'support'), 1)
  query = next((workspace.query / 'bar').iterdir())

  def adapt(support, *args):
    arguments = ['--mode=adapt', f'--checkpoint={workspace.checkpoint}']
    arguments += [f'--support={support}', '--num_steps=0', *args]
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, '')
    return out.splitlines()[-1]

  files = 'contact_sheet.png, model.npz, predictions.csv, predictions.json'
  first, second = 'adapted/support', 'adapted/support-2'
  assert adapt('A/support', query) == f'saved in {first}: {files}'
  assert adapt('B/support', query) == f'saved in {second}: {files}'
  assert adapt('B/support', query) == f'saved in {second}: {files}'
  # In the same folder, all files are replaced.
  files = 'contact_sheet.png, model.npz, predictions.json'
  assert adapt('A/support') == f'saved in {first}: {files}'
  assert sorted(p.name for p in pathlib.Path(first).iterdir()) == (
    files.split(', ')
  )
  assert adapt('A/support', f'--output={second}').startswith('saved in')
  saved = json.loads(pathlib.Path(second, 'predictions.json').read_text())
  assert saved['support'] == str(workspace.path / 'A' / 'support')
  # Predictions of one model are not written beside another one.
  status, _, err = run(
    capsys, '--mode=predict', f'--model={first}', query, f'--output={second}'
  )
  assert status == 2 and 'contains the results of --mode=adapt' in err


def test_files_of_an_earlier_adaptation_stay_if_the_disk_is_full(
  workspace, capsys, monkeypatch
):
  output = workspace.path / 'stays'
  arguments = ['--mode=adapt', f'--checkpoint={workspace.checkpoint}']
  arguments += [f'--support={workspace.support}', f'--output={output}']
  assert run(capsys, *arguments, '--num_steps=0')[0] == 0
  before = {path: path.read_bytes() for path in output.iterdir()}

  def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(np, 'savez', fail)
  status, _, err = run(capsys, *arguments, '--num_steps=1')
  assert status == 2 and 'No space left on device' in err
  assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_adapt_warns_about_identical_classes(workspace, capsys):
  support = workspace.path / 'same'
  for name in ('a', 'b'):
    shutil.copytree(workspace.support / 'bar', support / name)
    (support / name / 'notes.txt').unlink()
  arguments = [
    '--mode=adapt',
    f'--checkpoint={workspace.checkpoint}',
    f'--support={support}',
    f'--output={workspace.path}/same-out',
    '--num_steps=0',
  ]
  status, _, err = run(capsys, *arguments)
  assert status == 0
  assert 'not significantly above chance (50 %)' in err
  for i, suffix in enumerate(('png', 'jpg', 'webp')):
    one, other = (f'{support}/{name}/{i}.{suffix}' for name in 'ab')
    assert f'{one} and {other} are the same image in different classes' in err


def touch_files(path, *files):
  for file in files:
    (path / file).parent.mkdir(parents=True, exist_ok=True)
    (path / file).touch()
  return path


@pytest.mark.parametrize(
  ('files', 'classes', 'lines'),
  [
    (['train/1.png', 'car/1.png', 'bus/1.png'], 'bus car train', []),
    (['train/x/1.png', 'car/x/1.png', 'bus/1.png'], 'bus car train', []),
    (['x/y/a/1.png', 'x/y/b/1.png', 'x/z.txt'], 'a b', []),
    (
      ['x/a/1.png', 'x/b/1.png', 'x/z.txt', '__MACOSX/x/._1', 'Thumbs.db'],
      'a b',
      ['skipped {}/x/z.txt: not in a class folder'],
    ),
    (
      ['train/1.png', 'Test/1.png'],
      'Test train',
      ['--support={}: the classes are named like splits: Test, train'],
    ),
  ],
)
def test_class_folders_of_support_set_are_found(
  tmp_path, capsys, files, classes, lines
):
  found = folders_lib.find_support(touch_files(tmp_path, *files))
  assert list(found) == classes.split()
  expected = [f'warning: {line.format(tmp_path)}' for line in lines]
  assert capsys.readouterr().err.splitlines() == expected


@pytest.mark.parametrize(
  ('files', 'splits', 'example'),
  [
    (
      ['train/a/1.png', 'test/a/1.png', 'test/b/1.png'],
      'test, train',
      '--support={0}/train --query={0}/test',
    ),
    (
      ['x/Training/a/1.png', 'x/VALIDATION/a/1.png'],
      'Training, VALIDATION',
      '--support={0}/x/Training',
    ),
    (['testing/a/1.png', 'Dev/2.png'], 'Dev, testing', '--support={0}/Dev'),
    (['train/a/1.png', 'train/b/1.png'], 'train', '--support={0}/train'),
    (
      ['train/a/1.png', 'valid/a/1.png', 'other/1.png'],
      'train, valid',
      '--support={0}/train',
    ),
  ],
)
def test_splits_are_not_classes_of_a_support_set(
  tmp_path, files, splits, example
):
  with pytest.raises(UserError) as caught:
    folders_lib.find_support(touch_files(tmp_path, *files))
  assert str(caught.value) == (
    f'--support={tmp_path}: contains the splits {splits} instead of classes;'
    f' use, for example, {example.format(tmp_path)}'
  )


def test_folders_of_splits_are_not_true_classes_of_query_images(
  tmp_path, capsys
):
  files = ['top/train/bar/1.png', 'top/test/train/1.png', 'top/test/2.png']
  queries = folders_lib.find_queries([touch_files(tmp_path, *files)])
  truths = {
    str(query.path.relative_to(tmp_path)): query.truth(['bar', 'train'])
    for query in queries
  }
  assert truths == dict(zip(files, ['bar', 'train', ''], strict=True))
  assert capsys.readouterr().err == (
    f'warning: {tmp_path} contains the splits test, train: the images of all'
    ' are classified\n'
  )
  # Wrapper folders, and folders within class folders.
  files = ['x/bar/1.png', 'x/bar/more/2.png', 'x/other/1.png', '3.png']
  queries = folders_lib.find_queries([touch_files(tmp_path / 'x', *files)])
  truths = [query.truth(['bar', 'disc']) for query in queries]
  assert truths == ['', 'bar', 'bar', '']
  assert capsys.readouterr().err == ''


@settings(path_names.SETTINGS, max_examples=15)
@given(path_names.NAMES)
def test_folders_of_images_may_have_any_name(
  workspace, adapted, tmp_path_factory, name
):
  """The support set, the query images, the model and the output."""
  folder = tmp_path_factory.mktemp('names')
  image_folders.write_class_folders(folder / name / 'query', 1)
  shutil.copy(workspace.output / 'model.npz', folder / name)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    given = path_names.as_argument(name)
    files = sorted(map(str, pathlib.Path(name).glob('query/*/*')))
    status = cli.main(
      [
        '--mode=predict',
        f'--model={given}/model.npz',
        f'--output={given}/output',
        '--',
        f'{given}/query',
      ]
    )
    support = folders_lib.find_support(pathlib.Path(name, 'query'))
    reader = folders_lib.ImageReader(data.spec('glyphs'))
    support = folders_lib.read_support(support, reader)
  assert status == 0
  saved = json.loads((folder / name / 'output/predictions.json').read_text())
  assert [row['file'] for row in saved['predictions']] == files
  assert [str(picture.path) for picture in support.pictures] == files


def test_support_images_are_limited(workspace, monkeypatch, capsys):
  monkeypatch.setattr(folders_lib, 'MAX_SUPPORT_IMAGES', 6)
  class_files = folders_lib.find_support(workspace.support)
  del class_files['bar']
  reader = folders_lib.ImageReader(data.spec('glyphs'))
  support = folders_lib.read_support(class_files, reader)
  assert [picture.path.name for picture in support.pictures] == [
    '0.png',
    '1.jpg',
    'more.png',
    '0.png',
    '1.jpg',
    '2.webp',
  ]
  assert support.labels.tolist() == [0, 0, 0, 1, 1, 1]
  assert "using 3 of the 4 files of class 'disc'" in capsys.readouterr().err


def test_contact_sheet_shows_each_image_at_its_position():
  rng = np.random.default_rng(0)
  colors = rng.integers(0, 256, (40, 3), np.uint8)
  tiles = [
    contact_sheet.Tile(
      np.broadcast_to(c, (112, 112, 3)),
      f'{i}.png',
      'name',
      0.5,
      [True, False, None][i % 3],
    )
    for i, c in enumerate(colors)
  ]
  rows = [
    contact_sheet.Row('one', tiles[:3]),
    contact_sheet.Row('many', tiles[:30]),
  ]
  query = contact_sheet.Row('query', tiles)
  sheet = np.asarray(
    contact_sheet.draw_contact_sheet('title', 'subtitle', rows, query)
  )
  shown = [*colors[:3], *colors[: contact_sheet.MAX_SUPPORT_TILES], *colors]
  flat = sheet.reshape(-1, 3)
  for color in colors:  # tiles are 112 x 112; their frames are outside
    count = (flat == color).all(-1).sum()
    times = sum((color == other).all() for other in shown)
    assert count == times * 112 * 112
  left = contact_sheet.MARGIN
  top = left + contact_sheet.HEADER_HEIGHT + contact_sheet.HEADING_HEIGHT
  for i in range(3):  # in order, below the first heading
    x = left + i * (contact_sheet.TILE_SIZE + contact_sheet.GAP) + 56
    column = sheet[: top + 112, x]
    assert (column[-56] == colors[i]).all()
  frame = sheet[top + 56, left - 1]
  assert frame.tolist() == [0x00, 0x72, 0xB2]


def test_adapt_draws_contact_sheet(workspace, adapted):
  sheet = np.asarray(Image.open(workspace.output / 'contact_sheet.png'))
  title = sheet[: contact_sheet.MARGIN + contact_sheet.HEADER_HEIGHT]
  assert sheet.shape[2] == 3 and (title < 128).any()
  blue = (sheet == [0x00, 0x72, 0xB2]).all(-1)
  assert blue.sum() > 21 * 4 * 80  # frames of correct predictions


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(
  'stream, color, environment, colored',
  [
    (Terminal, True, {'TERM': 'xterm'}, True),
    (Terminal, False, {'TERM': 'xterm'}, False),
    (Terminal, True, {'TERM': 'xterm', 'NO_COLOR': '1'}, False),
    (Terminal, True, {'TERM': 'xterm', 'NO_COLOR': ''}, True),
    (Terminal, True, {'TERM': 'dumb'}, False),
    (io.StringIO, True, {'TERM': 'xterm'}, False),
  ],
)
def test_colors_are_used_on_terminals_only(
  monkeypatch, stream, color, environment, colored
):
  monkeypatch.delenv('NO_COLOR', raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(sys, 'stdout', stream())
  monkeypatch.setattr(sys, 'stderr', stream())
  arguments = ['--mode=nope'] if color else ['--mode=nope', '--no_color']
  assert cli.main(arguments) == 2
  assert ('\x1b[31merror:\x1b[0m' in sys.stderr.getvalue()) == colored
  assert 'error:' in sys.stderr.getvalue()
  with console.console_settings(color=color):
    console.print_result('done')
  assert sys.stdout.getvalue() == (
    '\x1b[1mdone\x1b[0m\n' if colored else 'done\n'
  )


def test_quiet_prints_results_and_errors_only(capsys, monkeypatch):
  def mode(flags, config):
    print('progress')
    console.print_warning('a warning')
    console.print_result('the result')
    with progress.progress_bar(3, 'it', 'working') as bar:
      assert bar.disable
    raise UserError('a reason\x1b[2J')

  monkeypatch.setattr(cli, 'mode_function', lambda name: mode)
  monkeypatch.setattr(sys, 'stderr', Terminal())
  monkeypatch.setenv('NO_COLOR', '1')
  assert cli.main(['--quiet']) == 2
  assert capsys.readouterr().out == 'the result\n'
  assert sys.stderr.getvalue() == 'error: a reason\\x1b[2J\n'
  assert not console.is_quiet()


def test_python_warnings_are_printed_as_one_line(capsys, monkeypatch):
  def mode(flags, config):
    warnings.simplefilter('always')
    warnings.warn('a message', stacklevel=1)

  monkeypatch.setattr(cli, 'mode_function', lambda name: mode)
  assert cli.main([]) == 0
  assert capsys.readouterr().err == 'warning: a message\n'


def test_help_lists_modes_flags_and_exit_codes(capsys):
  with pytest.raises(SystemExit) as exit_info:
    cli.main(['--help'])
  assert exit_info.value.code == 0
  out = capsys.readouterr().out
  for name, mode in cli_flags.MODES.items():
    assert f'  {name:8} {mode.about}' in out
  for word in (
    '--support',
    '--query',
    '--model',
    '--quiet',
    '--no_color',
    'NO_COLOR',
    'exit codes',
    '130, 143',
    '--task.ways=5',
    '--mode=predict --model=',
  ):
    assert word in out


def test_closed_pipe_exits_with_141(monkeypatch, tmp_path):
  def mode(flags, config):
    raise BrokenPipeError

  monkeypatch.setattr(cli, 'mode_function', lambda name: mode)
  with open(tmp_path / 'out', 'w') as file:
    monkeypatch.setattr(sys, 'stdout', file)
    assert cli.main([]) == 141
