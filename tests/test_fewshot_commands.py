"""From folders of images to answers, on the command line."""

import csv
import io
import json
import pathlib
import re
import shutil
import sys
import warnings

import image_folders
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import maml_jax
from maml_jax import cli, data
from maml_jax.evaluation import statistics
from maml_jax.fewshot import commands, contact_sheet
from maml_jax.utils import compilation_cache, console, progress
from maml_jax.utils.errors import UserError

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'glyphs_5w1s.py'


class Place:
  """A checkpoint, folders, and what `adapt` has made of them."""

  def __init__(self, path):
    self.path = path
    self.checkpoint = image_folders.make_checkpoint(path / 'checkpoint')
    self.support = image_folders.folder(path / 'support', 3)
    image_folders.picture('disc', 9).save(
      self.support / 'disc' / 'more.png'
    )  # unequal
    (self.support / 'bar' / 'notes.txt').write_text('no image')
    (self.support / 'README').write_text('beside the classes')
    self.query = image_folders.folder(path / 'query', 7, start=50)
    (self.query / 'bar' / 'cut.jpg').write_bytes(b'\xff\xd8\xff\xe0')
    seen = self.support / 'frame' / '0.png'
    shutil.copy(seen, self.query / 'frame' / 'seen.png')
    image_folders.picture('bar', 77).save(self.query / 'no class\n.png')
    self.output = path / 'out'


def run(capsys, *words):
  status = cli.main([str(word) for word in words])
  out, err = capsys.readouterr()
  return status, out, err


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return Place(tmp_path_factory.mktemp('own'))


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
  monkeypatch.setattr(
    compilation_cache, 'enable_compilation_cache', lambda **_: None
  )


@pytest.fixture(scope='module')
def adapted(place):
  """What `adapt` says: status, stdout, stderr."""
  out, err = io.StringIO(), io.StringIO()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      compilation_cache, 'enable_compilation_cache', lambda **_: None
    )
    patch.setattr(sys, 'stdout', out)
    patch.setattr(sys, 'stderr', err)
    status = cli.main(
      [
        '--mode=adapt',
        f'--checkpoint={place.checkpoint}',
        f'--support={place.support}',
        f'--output={place.output}',
        '--head=prototype',
        '--num_steps=1',
        '--query',
        str(place.query),
        str(place.query / 'bar' / '50.webp'),
      ],
      str(PRESET),
    )
  return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope='module')
def said(place, adapted):
  return json.loads((place.output / 'predictions.json').read_text())


def test_adapts_answers_and_names_its_files(place, adapted, said):
  status, out, _ = adapted
  assert status == 0
  lines = out.splitlines()
  assert lines[0] == (
    '3 classes, 3 to 4 images each: 1 inner steps from a head of class means '
    '(prototypes), batch norm support'
  )
  share = r'(\S+) % \((\d+) of (\d+); 95 % interval \d+ to \d+ %\)'
  judged = re.fullmatch(f'leave-one-out accuracy on .*: {share}', lines[1])
  accuracy = re.fullmatch(f'accuracy, by .*: {share}', lines[-2])
  assert judged[3] == '10' and accuracy[3] == '21'
  assert float(accuracy[1]) > 80  # by eye, these shapes are easy to tell
  assert lines[-1] == (
    f'in {place.output}: predictions.csv, predictions.json, '
    'contact_sheet.png, model.npz'
  )
  assert said['accuracy']['right'] == int(accuracy[2])
  assert said['leave_one_out']['images'] == 10
  assert said['classes'] == {'bar': 3, 'disc': 4, 'frame': 3}


def test_files_say_the_same_as_the_table(place, adapted, said):
  _, out, _ = adapted
  with open(place.output / 'predictions.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(said['predictions']) == 23
  for row, known in zip(rows, said['predictions'], strict=True):
    assert list(row) == ['file', 'class', 'probability']
    best = max(known['probabilities'], key=known['probabilities'].get)
    assert row['class'] == known['class'] == best
    assert float(row['probability']) == pytest.approx(
      known['probabilities'][best], abs=1e-6
    )
    assert sum(known['probabilities'].values()) == pytest.approx(1, abs=1e-5)
    percent = f'{100 * known["probability"]:.1f} %'
    assert re.search(rf'{re.escape(row["file"])} +{best} +{percent}', out)


def test_what_cannot_be_used_is_named_and_nothing_else(place, adapted, said):
  """Skipped, named twice, learned from: each in a line of its own."""
  _, _, err = adapted
  place_of = {
    f'{place.support}/bar/notes.txt': 'not an image',
    f'{place.query}/bar/cut.jpg': 'not an image',
  }
  assert said['skipped'] == place_of
  expected = {f'warning: left out {k}: {v}' for k, v in place_of.items()} | {
    f'warning: left out {place.support}/README: it lies in no class folder',
    f'warning: {place.query}/bar/50.webp is named twice, and answered once',
    f'warning: {place.query}/frame/seen.png is in the support set, too: its '
    'answer says nothing',
  }
  assert set(err.splitlines()) == expected
  seen = [p for p in said['predictions'] if p['in_support']]
  assert [p['file'] for p in seen] == [f'{place.query}/frame/seen.png']


def test_folders_tell_the_truth_where_they_are_classes(place, said):
  for known in said['predictions']:
    folder = pathlib.Path(known['file']).parent
    truth = None if folder == place.query else folder.name
    assert known['truth'] == truth


def test_predict_says_the_same_of_each_image_alone(place, said, capsys):
  known = [p for p in said['predictions'] if p['truth'] == 'disc'][:3]
  files = [p['file'] for p in known]
  status, out, err = run(
    capsys, '--mode=predict', f'--model={place.output}', *files
  )
  assert (status, err) == (0, '')
  for line, p in zip(out.splitlines(), known, strict=True):
    file, name, percent, _ = line.split()
    assert (file, name) == (p['file'], p['class'])
    assert float(percent) == pytest.approx(100 * p['probability'], abs=0.051)
  output = place.path / 'alone'
  status, out, _ = run(
    capsys,
    '--mode=predict',
    '--model',
    place.output / 'model.npz',
    files[1],
    '--output',
    output,
  )
  assert status == 0
  assert out.endswith(
    f'in {output}: predictions.csv, predictions.json, contact_sheet.png\n'
  )
  (alone,) = json.loads((output / 'predictions.json').read_text())[
    'predictions'
  ]
  assert alone['probabilities'] == known[1]['probabilities']  # bit by bit


def test_predict_names_what_it_skips_and_shows_odd_names(place, capsys):
  odd = place.query / 'no class\n.png'
  words = ['--mode=predict', f'--model={place.output}', odd]
  status, out, err = run(capsys, *words, place.support / 'README')
  assert status == 0
  assert 'no class\\n.png' in out and len(out.splitlines()) == 1
  assert err == f'warning: left out {place.support}/README: not an image\n'
  status, quiet, err = run(capsys, *words, place.support / 'README', '--quiet')
  assert (status, quiet, err) == (0, out, '')


def test_the_library_reads_the_model(place, said):
  learned = maml_jax.load_classifier(place.output / 'model.npz')
  p = said['predictions'][0]
  image = np.asarray(Image.open(p['file']).convert('L'))
  row = learned.predict_proba([image])[0]
  assert row.max() == pytest.approx(p['probability'], abs=0.02)
  assert learned.predict([image]) == [p['class']]


def test_one_image_of_a_class_and_no_query(place, capsys):
  support = image_folders.folder(place.path / 'singles', 1)
  output = place.path / 'singles-out'
  status, out, err = run(
    capsys,
    '--mode=adapt',
    f'--checkpoint={place.checkpoint}',
    '--quiet',
    f'--support={support}',
    f'--output={output}',
    '--num_steps=1',
    '--config',
    PRESET.parent / 'glyphs_5w1s.py',
    *[f'--config.{k}' for k in ('task.ways=4',)],
  )
  assert status == 2 and 'of another config' in err and out == ''
  status, out, err = run(
    capsys,
    '--mode=adapt',
    f'--checkpoint={place.checkpoint}',
    f'--support={support}',
    f'--output={output}',
    '--num_steps=1',
  )
  assert (status, err) == (0, '')
  assert 'not known, for there is one image only of bar, disc, frame' in out
  assert "from the checkpoint's own head" in out
  assert out.endswith(f'in {output}: contact_sheet.png, model.npz\n')
  assert sorted(p.name for p in output.iterdir()) == [
    'contact_sheet.png',
    'model.npz',
  ]


def test_warns_where_classes_cannot_be_told_apart(place, capsys):
  """Two classes of the same images, in quiet and aloud."""
  support = place.path / 'same'
  for name in ('a', 'b'):
    shutil.copytree(place.support / 'bar', support / name)
    (support / name / 'notes.txt').unlink()
  words = [
    '--mode=adapt',
    f'--checkpoint={place.checkpoint}',
    f'--support={support}',
    f'--output={place.path}/same-out',
    '--num_steps=0',
  ]
  status, _, err = run(capsys, *words)
  assert status == 0
  assert 'no better than a guess may' in err
  for i, suffix in enumerate(('png', 'jpg', 'webp')):
    one, other = (f'{support}/{name}/{i}.{suffix}' for name in 'ab')
    assert f'{one} and {other} are the same image, in two classes' in err


def test_many_images_of_a_class_are_thinned_out(place, monkeypatch, capsys):
  monkeypatch.setattr(commands, 'MAX_SUPPORT_IMAGES', 6)
  pictures, label = commands._read_support(
    {
      name: commands._classes(place.support)[name] for name in ('disc', 'frame')
    },
    data.spec('glyphs'),
    {},
  )
  assert [p.path.name for p in pictures] == [
    '0.png',
    '1.jpg',
    'more.png',
    '0.png',
    '1.jpg',
    '2.webp',
  ]
  assert label.tolist() == [0, 0, 0, 1, 1, 1]
  assert 'of the 4 files of disc, 3 are learned from' in capsys.readouterr().err


@pytest.mark.parametrize('n', [1, 7, 200])
def test_wilson_is_scipys(n):
  for right in {0, 1, n // 3, n}:
    expected = scipy.stats.binomtest(right, n).proportion_ci(method='wilson')
    np.testing.assert_allclose(
      statistics.wilson_interval(right, n),
      [expected.low, expected.high],
      atol=1e-9,
    )


def test_contact_sheet_shows_each_image_in_its_place():
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
  sheet = np.asarray(contact_sheet.draw('title', 'remark', rows, query))
  shown = [*colors[:3], *colors[: contact_sheet.MAX_SUPPORT_TILES], *colors]
  flat = sheet.reshape(-1, 3)
  for color in colors:  # a tile is 112 x 112 but for the frame upon its edge
    count = (flat == color).all(-1).sum()
    times = sum((color == other).all() for other in shown)
    assert count == times * 112 * 112
  left = contact_sheet.MARGIN
  for i in range(3):  # in order, below the first heading
    x = left + i * (contact_sheet.TILE + contact_sheet.GAP) + 56
    column = sheet[: left + 52 + 30 + 112, x]
    assert (column[-56] == colors[i]).all()
  frame = sheet[left + 52 + 30 + 56, left - 1]
  assert frame.tolist() == [0x00, 0x72, 0xB2]


def test_contact_sheet_of_the_command(place, adapted):
  sheet = np.asarray(Image.open(place.output / 'contact_sheet.png'))
  title = sheet[: contact_sheet.MARGIN + 52]
  assert sheet.shape[2] == 3 and (title < 128).any()
  blue = (sheet == [0x00, 0x72, 0xB2]).all(-1)
  assert blue.sum() > 21 * 4 * 80  # frames of images that were told rightly


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
def test_colours_are_for_terminals(
  monkeypatch, stream, color, environment, colored
):
  monkeypatch.delenv('NO_COLOR', raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(sys, 'stdout', stream())
  monkeypatch.setattr(sys, 'stderr', stream())
  words = ['--mode=nope'] if color else ['--mode=nope', '--no_color']
  assert cli.main(words) == 2
  assert ('\x1b[31merror:\x1b[0m' in sys.stderr.getvalue()) == colored
  assert 'error:' in sys.stderr.getvalue()
  with console.console_settings(color=color):
    console.print_result('done')
  assert sys.stdout.getvalue() == (
    '\x1b[1mdone\x1b[0m\n' if colored else 'done\n'
  )


def test_quiet_is_results_and_errors_alone(capsys, monkeypatch):
  def mode(flags, config):
    print('on the way')
    console.print_warning('a trifle')
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


def test_warnings_of_python_are_lines_too(capsys, monkeypatch):
  def mode(flags, config):
    warnings.simplefilter('always')
    warnings.warn('passed over', stacklevel=1)

  monkeypatch.setattr(cli, 'mode_function', lambda name: mode)
  assert cli.main([]) == 0
  assert capsys.readouterr().err == 'warning: passed over\n'


def test_help_names_modes_flags_and_exit_codes(capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(['--help'])
  assert ended.value.code == 0
  out = capsys.readouterr().out
  for name, mode in cli.MODES.items():
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


def test_a_reader_that_has_seen_enough(monkeypatch, tmp_path):
  def mode(flags, config):
    raise BrokenPipeError

  monkeypatch.setattr(cli, 'mode_function', lambda name: mode)
  with open(tmp_path / 'out', 'w') as file:
    monkeypatch.setattr(sys, 'stdout', file)
    assert cli.main([]) == 141
