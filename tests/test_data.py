"""Data sets: files as people have them in, memory-mapped arrays out."""

import csv
import dataclasses
import io
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from maml_jax import data
from maml_jax.data import records, safe_pickle, store
from maml_jax.data.datasets import (
  mini_imagenet,
  mini_imagenet_classes,
  omniglot,
)
from maml_jax.utils.errors import UserError

IMAGES = 3  # of each class of the small mini-ImageNet
WNIDS = {
  split: list(classes)[:2]
  for split, classes in mini_imagenet_classes.CLASSES.items()
}


def png(image):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png')
  return buffer.getvalue()


def run(*args, **env):
  """Runs Python in another process; its output is text."""
  return subprocess.run(
    [sys.executable, *args],
    env=os.environ | {key: str(value) for key, value in env.items()},
    capture_output=True,
    text=True,
  )


# mini-ImageNet, two classes a split


@pytest.fixture
def small(monkeypatch):
  """mini_imagenet with the counts of the small one."""
  spec = dataclasses.replace(
    mini_imagenet.SPEC,
    num_classes=dict.fromkeys(data.SPLITS, 2),
    images_per_class=IMAGES,
  )
  monkeypatch.setitem(data.SPECS, 'mini_imagenet', spec)


@pytest.fixture(scope='session')
def images():
  """uint8 [split][class][i] images, by split, class and number."""
  rng = np.random.default_rng(0)
  return {
    split: {
      wnid: rng.integers(0, 256, (IMAGES, 84, 84, 3), np.uint8)
      for wnid in wnids
    }
    for split, wnids in WNIDS.items()
  }


def files(images, pattern, suffix='png'):
  """Yields (path, encoded image), for a pattern of {split}, {wnid}, {name}."""
  for split, classes in images.items():
    for wnid, stack in classes.items():
      for i, image in enumerate(stack):
        name = f'{wnid}{i:08d}.{suffix}'
        yield pattern.format(split=split, wnid=wnid, name=name), png(image)


def write_files(folder, entries):
  for name, content in entries:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def write_zip(path, entries):
  with zipfile.ZipFile(path, 'w') as file:
    for name, content in entries:
      file.writestr(name, content)


def write_csv(folder, images):
  for split, classes in images.items():
    with open(folder / f'{split}.csv', 'w', newline='') as file:
      rows = csv.writer(file)
      rows.writerow(['filename', 'label'])
      for wnid, stack in classes.items():
        for i in range(len(stack)):
          rows.writerow([f'{wnid}{i:08d}.jpg', wnid])


def csv_beside_images(folder, images):
  write_csv(folder, images)
  write_files(folder, files(images, 'images/{name}', 'jpg'))


def csv_beside_class_folders(folder, images):
  write_csv(folder, images)
  write_files(folder, files(images, '{wnid}/{name}'))
  write_files(folder, [('images/n0000000000000000.png', b'not in the tables')])


def class_folders(folder, images):
  write_files(folder, files(images, '{wnid}/{name}'))


def class_folders_by_split(folder, images):
  write_files(folder, files(images, '{split}/{wnid}/{name}', 'JPEG'))


def zipped_class_folders(folder, images):
  write_csv(folder, images)
  entries = list(files(images, '{wnid}/{name}'))
  write_zip(folder / 'a.zip', [*entries[::2], ('__MACOSX/._a.png', b'junk')])
  write_zip(folder / 'b.zip', entries[1::2])


def zipped_images(folder, images):
  write_csv(folder, images)
  write_zip(folder / 'images.zip', files(images, 'images/{name}'))


def _pickled(folder, images, dump):
  first = 0
  for split, classes in images.items():
    labels = [first + k for k in range(len(classes)) for _ in range(IMAGES)]
    content = {
      'data': np.concatenate(list(classes.values())),
      'labels': labels,
      'catname2label': {name: first + k for k, name in enumerate(classes)},
    }
    path = folder / mini_imagenet.PICKLES[split]
    path.write_bytes(dump(content))
    first += len(classes)


def pickles_protocol_2(folder, images):
  _pickled(folder, images, lambda content: pickle.dumps(content, 2))


def pickles_protocol_5(folder, images):
  _pickled(folder, images, lambda content: pickle.dumps(content, 5))


def pickles_shuffled(folder, images):
  def dump(content):
    order = np.arange(len(content['labels'])).reshape(-1, IMAGES).T.ravel()
    labels = np.array(content['labels'])[order]
    return pickle.dumps(
      content | {'data': content['data'][order], 'labels': list(labels)}
    )

  _pickled(folder, images, dump)


def pickles_of_python_2(folder, images):
  _pickled(folder, images, pickle_of_python_2)


def pickle_of_python_2(content):
  """The bytes that Python 2 writes: a str is text and bytes alike."""

  def text(s):
    return b'U' + bytes([len(s)]) + s.encode()

  def number(i):
    return b'J' + struct.pack('<i', i)

  array = content['data']
  raw = array.tobytes()
  return b''.join(
    [
      b'\x80\x02}(',
      text('data'),
      b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n',
      *(number(0), b'\x85', text('b'), b'\x87R('),
      *(number(1), b'(', *map(number, array.shape), b't'),
      *(b'cnumpy\ndtype\n', text('u1'), number(0), number(1), b'\x87R('),
      *(number(3), text('|'), b'NNN', number(-1), number(-1), number(0), b'tb'),
      *(b'\x89T', struct.pack('<i', len(raw)), raw, b'tb'),
      text('labels'),
      *(b'](', *map(number, content['labels']), b'e'),
      text('catname2label'),
      b'}(',
      *(text(key) + number(i) for key, i in content['catname2label'].items()),
      b'uu.',
    ]
  )


LAYOUTS = [
  csv_beside_images,
  csv_beside_class_folders,
  class_folders,
  class_folders_by_split,
  zipped_class_folders,
  zipped_images,
  pickles_protocol_2,
  pickles_protocol_5,
  pickles_shuffled,
  pickles_of_python_2,
]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_same_dataset(tmp_path, small, images, layout):
  given = tmp_path / 'given'
  given.mkdir()
  layout(given, images)
  data.prepare('mini_imagenet', given, tmp_path)
  for split, classes in images.items():
    dataset = data.load_dataset('mini_imagenet', split, tmp_path)
    expected = np.concatenate(list(classes.values()))
    np.testing.assert_array_equal(dataset.images, expected)
    np.testing.assert_array_equal(
      dataset.index, np.arange(2 * IMAGES).reshape(2, IMAGES)
    )
    np.testing.assert_array_equal(dataset.size, [IMAGES, IMAGES])
    assert isinstance(dataset.images, np.memmap)
    assert dataset.images.dtype == np.uint8
    assert dataset.index.dtype == dataset.size.dtype == np.int32
    names = mini_imagenet_classes.CLASSES[split]
    assert data.class_names('mini_imagenet', split, tmp_path) == [
      f'{names[wnid]}, {wnid}' for wnid in WNIDS[split]
    ]


def test_classes_are_of_any_size_and_padding_is_a_valid_position(tmp_path):
  spec = records.DatasetSpec('toy', (2, 2, 1), '', lambda _: {})
  sizes = {'a': 3, 'b': 1, 'c': 2}
  listed = [
    records.Record(label, str(i), lambda n=n: png(np.full((2, 2), n, np.uint8)))
    for n, (label, size) in enumerate(sizes.items())
    for i in range(size)
  ]
  splits = {
    split: [r._replace(label=f'{split} {r.label}') for r in listed]
    for split in data.SPLITS
  }
  records.verify_counts(spec, splits)
  store.write_dataset(tmp_path / 'toy', spec, splits)
  dataset = store.read_arrays(tmp_path / 'toy', spec, 'val')
  np.testing.assert_array_equal(dataset.size, [3, 1, 2])
  np.testing.assert_array_equal(
    dataset.index, [[0, 1, 2], [3, 3, 3], [4, 5, 5]]
  )
  np.testing.assert_array_equal(
    dataset.images[dataset.index][..., 0, 0, 0], [[0] * 3, [1] * 3, [2] * 3]
  )


def test_images_of_other_sizes_are_resized_with_averaging():
  checkers = np.uint8(np.indices((168, 168)).sum(0) % 2 * 255)
  pixels = store.decode_image(png(checkers), mini_imagenet.SPEC)
  assert pixels.shape == (84, 84, 3)
  assert np.all(np.abs(pixels.astype(int) - 127) <= 5)


@pytest.mark.parametrize(
  ('layout', 'harm', 'complaint'),
  [
    (
      class_folders,
      f'{WNIDS["val"][1]}/{WNIDS["val"][1]}00000001.png',
      'has 2 images, expected 3',
    ),
    (
      csv_beside_images,
      f'images/{WNIDS["test"][0]}00000002.jpg',
      'test.csv lists',
    ),
  ],
)
def test_a_missing_image_is_named(
  tmp_path, small, images, layout, harm, complaint
):
  layout(tmp_path, images)
  (tmp_path / harm).unlink()
  with pytest.raises(UserError, match=complaint) as caught:
    data.prepare('mini_imagenet', tmp_path, tmp_path / 'prepared')
  assert harm.split('/')[-1][:9] in str(caught.value)
  assert not (tmp_path / 'prepared').exists()


def test_a_missing_class_is_counted(tmp_path, small, images):
  class_folders(tmp_path, images | {'val': {}})
  with pytest.raises(UserError, match="'val' has 0 classes, expected 2"):
    data.prepare('mini_imagenet', tmp_path, tmp_path / 'prepared')


def test_a_class_in_two_splits_is_refused():
  spec = records.DatasetSpec('toy', (2, 2, 1), '', lambda _: {})
  record = records.Record('a', '0', bytes)
  with pytest.raises(UserError, match="class 'a' is in several splits"):
    records.verify_counts(spec, dict.fromkeys(data.SPLITS, [record]))


@pytest.mark.parametrize('content', [b'', b'GIF89a', png(np.ones((9, 9)) > 0)])
def test_a_broken_image_is_named(tmp_path, small, images, content):
  class_folders(tmp_path, images)
  stem = f'{WNIDS["train"][1]}00000002'
  (tmp_path / WNIDS['train'][1] / f'{stem}.png').write_bytes(content[:40])
  with pytest.raises(UserError, match=f"cannot read image '{stem}'"):
    data.prepare('mini_imagenet', tmp_path, tmp_path / 'prepared')
  assert not list((tmp_path / 'prepared').rglob('*.*'))


@pytest.mark.parametrize('name', ['../a.png', '/a.png', 'C:\\a.png', 'b/../a'])
def test_zip_entries_that_point_outside_are_refused(tmp_path, name):
  write_zip(tmp_path / 'bad.zip', [(name, b'')])
  with pytest.raises(UserError, match='points outside'):
    records.scan_images(tmp_path)


def test_a_broken_zip_is_named(tmp_path):
  (tmp_path / 'bad.zip').write_bytes(b'PK nothing')
  with pytest.raises(UserError, match='cannot read the archive .*bad.zip'):
    records.scan_images(tmp_path)


# Pickles


class Call:
  """Pickles as a call."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', [0, 2, 4, 5])
@pytest.mark.parametrize(
  'call',
  [
    lambda path: Call(os.system, f'touch {path}'),
    lambda path: Call(eval, f'open({str(path)!r}, "w")'),
    lambda path: Call(open, str(path), 'w'),
    lambda path: Call(np.save, str(path), np.zeros(1)),
    lambda path: Call(getattr, np.ndarray, 'tofile'),
  ],
)
def test_pickles_that_call_are_refused_unexecuted(tmp_path, protocol, call):
  touched = tmp_path / 'touched'
  evil = tmp_path / 'evil.pickle'
  evil.write_bytes(pickle.dumps({'data': call(touched)}, protocol))
  with pytest.raises(UserError, match='refused: .*evil.pickle asks for'):
    safe_pickle.load(evil)
  assert not list(tmp_path.glob('touched*'))


def test_pickles_of_arrays_are_read(tmp_path):
  path = tmp_path / 'good.pickle'
  content = {
    'array': np.arange(6, dtype=np.uint8).reshape(2, 3),
    'column-major': np.asfortranarray(np.eye(2)),
    'scalars': [np.int64(3), 4, 'five', b'six', None],
  }
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    path.write_bytes(pickle.dumps(content, protocol))
    read = safe_pickle.load(path)
    np.testing.assert_equal(read, content)


@pytest.mark.parametrize('content', [b'', b'nonsense', pickle.dumps([1])[:-2]])
def test_broken_pickles_are_named(tmp_path, content):
  path = tmp_path / 'broken.pickle'
  path.write_bytes(content)
  with pytest.raises(UserError, match='cannot read the pickle .*broken'):
    safe_pickle.load(path)


def test_pickles_of_other_arrays_are_refused(tmp_path, small, images):
  small_images = {
    split: {wnid: stack[:, :32, :32] for wnid, stack in classes.items()}
    for split, classes in images.items()
  }
  pickles_protocol_5(tmp_path, small_images)
  with pytest.raises(UserError, match=r'uint8\[6, 32, 32, 3\]'):
    data.prepare('mini_imagenet', tmp_path, tmp_path)


# Missing, damaged, interrupted


def test_missing_data_are_told_how_to_get(tmp_path):
  with pytest.raises(UserError) as caught:
    data.load_dataset('mini_imagenet', 'train', tmp_path)
  message = str(caught.value)
  assert str(tmp_path / 'mini_imagenet') in message
  assert 'maml_jax.data prepare mini_imagenet --from DIR' in message
  assert f'--data_dir {tmp_path}' in message
  for layout in ('train.csv', 'images/', 'class folders', 'zip', '.pickle'):
    assert layout in message


@pytest.mark.parametrize('given', [None, 'nowhere', '.'])
@pytest.mark.parametrize('name', ['mini_imagenet', 'omniglot'])
def test_preparing_from_nothing_says_what_is_expected(tmp_path, name, given):
  given = given and tmp_path / given
  with pytest.raises(UserError, match='where DIR holds one of') as caught:
    data.prepare(name, given, tmp_path)
  assert str(given or 'no directory given') in str(caught.value)


def test_slips_are_guessed():
  with pytest.raises(UserError, match='did you mean mini_imagenet'):
    data.load_dataset('miniimagenet', 'train')
  with pytest.raises(UserError, match='did you mean val'):
    data.load_dataset('glyphs', 'vall')


def test_data_dir_comes_from_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv('MAML_JAX_DATA', str(tmp_path))
  assert data.prepared_dir('glyphs').is_relative_to(tmp_path)
  monkeypatch.delenv('MAML_JAX_DATA')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  home = tmp_path / 'home' / '.cache' / 'maml_jax'
  assert data.prepared_dir('glyphs').is_relative_to(home)


@pytest.fixture
def prepared(tmp_path, small, images):
  """A prepared small mini-ImageNet: its data_dir and its root."""
  given = tmp_path / 'given'
  class_folders(given, images)
  return tmp_path, data.prepare('mini_imagenet', given, tmp_path)


def truncate(path):
  os.truncate(path, path.stat().st_size - 9)


def flip(path):
  content = bytearray(path.read_bytes())
  content[-9] ^= 4
  path.write_bytes(content)


@pytest.mark.parametrize('harm', [os.remove, truncate, flip])
@pytest.mark.parametrize('file', ['image.npy', 'classes.json'])
def test_damaged_arrays_are_made_anew(prepared, images, harm, file):
  data_dir, root = prepared
  harm(root / 'arrays' / 'val' / file)
  with pytest.warns(UserWarning, match='arrays/val is damaged: it is made'):
    dataset = data.load_dataset('mini_imagenet', 'val', data_dir)
  expected = np.concatenate(list(images['val'].values()))
  np.testing.assert_array_equal(dataset.images, expected)


@pytest.mark.parametrize('harm', [os.remove, truncate, flip])
def test_damaged_digests_are_made_anew(prepared, images, harm):
  data_dir, root = prepared
  harm(root / 'arrays' / 'val' / store.DIGESTS_FILE)
  expected = np.concatenate(list(images['val'].values()))
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    dataset = data.load_dataset('mini_imagenet', 'val', data_dir)
  np.testing.assert_array_equal(dataset.images, expected)


def test_arrays_are_read_once_after_a_copy(prepared, tmp_path, monkeypatch):
  data_dir, root = prepared
  image = root / 'arrays' / 'val' / 'image.npy'
  os.utime(image, (1, 1))
  read = []
  digest = store._digest
  monkeypatch.setattr(store, '_digest', lambda p: read.append(p) or digest(p))
  for _ in range(2):
    data.load_dataset('mini_imagenet', 'val', data_dir)
  assert read == [image]


@pytest.mark.parametrize('pattern', ['*val.array_record*', 'dataset_info.json'])
def test_damaged_files_are_reported(prepared, pattern):
  data_dir, root = prepared
  shutil.rmtree(root / 'arrays' / 'val')
  (file,) = root.glob(pattern)
  os.truncate(file, 10)
  with pytest.raises(UserError, match='cannot be read from') as caught:
    data.load_dataset('mini_imagenet', 'val', data_dir)
  assert 'prepare mini_imagenet' in str(caught.value)


def test_a_failed_preparation_leaves_the_earlier_one(prepared, monkeypatch):
  data_dir, root = prepared
  before = sorted(data_dir.rglob('*'))

  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(store, 'decode_image', fail)
  with pytest.raises(KeyboardInterrupt):
    data.prepare('mini_imagenet', data_dir / 'given', data_dir)
  assert sorted(data_dir.rglob('*')) == before
  data.load_dataset('mini_imagenet', 'train', data_dir)


def test_a_place_that_cannot_be_written_is_reported(tmp_path, small, images):
  class_folders(tmp_path / 'given', images)
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='mini_imagenet: cannot write'):
    data.prepare('mini_imagenet', tmp_path / 'given', tmp_path / 'file')


# Omniglot


ALPHABETS = {'Aleph': 2, 'Beth': 1, 'Gimel': 2}


def drawings(top, alphabets=ALPHABETS):
  """Yields (path, encoded image): white paper, a stroke on its left edge."""
  image = np.full((105, 105), 255, np.uint8)
  image[:, :15] = 0
  encoded = png(image)
  for alphabet, characters in alphabets.items():
    for c in range(characters):
      for i in range(20):
        name = f'character{c + 1:02d}/0{c:03d}_{i + 1:02d}.png'
        yield f'{top}/{alphabet}/{name}', encoded


def zipped_drawings(folder):
  entries = list(drawings('images_background_small1'))
  write_zip(folder / 'images_background_small1.zip', entries)
  again = drawings('images_background_small2', {'Beth': 1})
  write_zip(folder / 'images_background_small2.zip', again)


def unpacked_drawings(folder):
  write_files(folder, drawings('images_background'))


@pytest.mark.parametrize('layout', [zipped_drawings, unpacked_drawings])
def test_omniglot_is_turned_into_new_classes(tmp_path, layout):
  layout(tmp_path)
  data.prepare('omniglot', tmp_path, tmp_path)
  train = data.load_dataset('omniglot', 'train', tmp_path)
  assert train.images.shape == (4 * 2 * 20, 28, 28, 1)
  np.testing.assert_array_equal(train.size, [20] * 8)
  first = train.images[train.index[0, 0]]
  assert np.all(first[:, :3] == 255) and np.all(first[:, 5:] == 0)
  for k in range(4):
    turned = train.images[train.index[2 * k, 0]]
    np.testing.assert_array_equal(turned, np.rot90(first, k))
  names = data.class_names('omniglot', 'train', tmp_path)
  assert names[:3] == [
    'Aleph/character01',
    'Aleph/character02',
    'Aleph/character01, 90 degrees',
  ]
  for split, alphabet in (('test', 'Beth'), ('val', 'Gimel')):
    names = data.class_names('omniglot', split, tmp_path)
    assert {name.split('/')[0] for name in names} == {alphabet}


def test_all_of_omniglot_is_split_by_character():
  names = [f'{a:02d}/{c:02d}' for a in range(50) for c in range(33)]
  split = omniglot._split(names[: omniglot.NUM_CHARACTERS])
  sizes = [list(split.values()).count(name) for name in data.SPLITS]
  assert sizes == [1100, 100, 423]


def test_two_alphabets_are_too_few(tmp_path):
  write_files(tmp_path, drawings('images', {'Aleph': 1, 'Beth': 1}))
  with pytest.raises(UserError, match='2 alphabets cannot make three splits'):
    data.prepare('omniglot', tmp_path, tmp_path)


# The command line, and other processes


def test_command_line(tmp_path):
  zipped_drawings(tmp_path)
  command = ('-m', 'maml_jax.data')
  env = {'MAML_JAX_DATA': tmp_path / 'prepared'}
  done = run(*command, 'prepare', 'omniglot', '--from', tmp_path, **env)
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith('omniglot: train 8, val 8, test 4 classes, in ')
  done = run(*command, 'list', **env)
  assert 'omniglot        train 8, val 8, test 4 classes' in done.stdout
  assert 'mini_imagenet   not prepared' in done.stdout
  done = run(*command, 'prepare', 'omnigloth', '--from', tmp_path, **env)
  assert (done.returncode, done.stdout) == (2, '')
  assert 'did you mean omniglot' in done.stderr
  done = run(*command, 'prepare', 'glyphs', '--from', tmp_path, **env)
  assert (done.returncode, done.stdout) == (2, '')
  complaint = f'glyphs is made from no files: leave out --from {tmp_path}\n'
  assert done.stderr == complaint
  assert 'Traceback' not in done.stderr
  loads = (
    'import sys; from maml_jax import data;'
    'print(len(data.load_dataset("omniglot", "test").size));'
    'print({"PIL", "tensorflow", "tensorflow_datasets"} & {*sys.modules})'
  )
  assert run('-c', loads, **env).stdout == '4\nset()\n'


def test_a_kill_leaves_nothing_that_looks_finished(tmp_path):
  zipped_drawings(tmp_path)
  prepared = tmp_path / 'prepared'
  killed = (
    'import os, signal, sys; from maml_jax import data;'
    'from maml_jax.data import store;'
    'store.decode = lambda *_: os.kill(os.getpid(), signal.SIGKILL);'
    'data.prepare("omniglot", sys.argv[1], sys.argv[2])'
  )
  assert run('-c', killed, tmp_path, prepared).returncode == -signal.SIGKILL
  with pytest.raises(UserError, match='omniglot is not prepared'):
    data.load_dataset('omniglot', 'train', prepared)
  (stale,) = (prepared / 'omniglot').glob('.*')
  data.prepare('omniglot', tmp_path, prepared)
  assert not stale.exists()
  assert len(data.load_dataset('omniglot', 'train', prepared).size) == 8


def test_what_is_being_prepared_is_left_alone(tmp_path):
  target, other = tmp_path / '1.0.0', tmp_path / '1.0.1'
  stale, foreign = tmp_path / '.1.0.0-stale', tmp_path / '.1.0.1-x'
  for folder in (stale / 'new', foreign):
    folder.mkdir(parents=True)
  with store._staged(target) as one:
    (one / 'file').write_text('one')
    assert not stale.exists() and foreign.exists()
    with store._staged(target) as two:
      (two / 'file').write_text('two')
      assert one.is_dir()
    assert (target / 'file').read_text() == 'two'
  assert (target / 'file').read_text() == 'one'
  with store._staged(other):
    assert not foreign.exists()
  assert sorted(tmp_path.iterdir()) == [target, other]


# How an image is to be turned, by the number in its EXIF data, as seen from
# what it should look like.
TURNS = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize('number', TURNS)
@pytest.mark.parametrize('suffix, off', [('png', 0), ('jpeg', 40)])
def test_images_are_turned_as_their_exif_data_say(number, suffix, off):
  blocks = np.random.default_rng(0).integers(0, 2, (6, 6, 1)) * 200
  image = blocks.repeat(14, 0).repeat(14, 1).repeat(3, 2).astype(np.uint8)
  exif = Image.Exif()
  exif[0x0112] = number
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, suffix, exif=exif, quality=95)
  pixels = store.decode_image(buffer.getvalue(), mini_imagenet.SPEC)
  assert np.abs(pixels - TURNS[number](image).astype(int)).max() <= off


def test_broken_exif_data_are_passed_over():
  image = np.full((84, 84, 3), 7, np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png', exif=b'Exif\0\0MM\0*\0\0\xff')
  pixels = store.decode_image(buffer.getvalue(), mini_imagenet.SPEC)
  np.testing.assert_array_equal(pixels, image)


# Real files


def test_real_mini_imagenet_is_complete(shared):
  facts = data.spec('mini_imagenet')
  splits = facts.source(shared / 'data' / 'mini_imagenet')
  records.verify_counts(facts, splits)
  for record in splits['test'][::600]:
    pixels = store.decode_image(record.read(), facts)
    assert 20 < pixels.mean() < 235


def test_real_omniglot(shared, tmp_path):
  data.prepare('omniglot', shared / 'data' / 'omniglot', tmp_path)
  names = {
    split: data.class_names('omniglot', split, tmp_path)
    for split in data.SPLITS
  }
  assert sum(map(len, names.values())) == 4 * 242
  alphabets = [{name.split('/')[0] for name in names[s]} for s in names]
  assert sum(map(len, alphabets)) == len(set.union(*alphabets)) == 8
  assert all(len(names[split]) >= 4 * 20 for split in names)
  test = data.load_dataset('omniglot', 'test', tmp_path)
  assert 0.05 < (test.images > 127).mean() < 0.2  # thin light strokes on dark
