"""Data sets are prepared from source files and loaded as memory maps."""

import csv
import dataclasses
import hashlib
import io
import os
import pathlib
import pickle
import re
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
from maml_jax.data import csv_splits, npz, records, safe_pickle, store
from maml_jax.data import images as images_lib
from maml_jax.data.datasets import (
  mini_imagenet,
  mini_imagenet_classes,
  omniglot,
)
from maml_jax.utils.errors import UserError

IMAGES = 3  # per class of the small mini-ImageNet
WNIDS = {
  split: list(classes)[:2]
  for split, classes in mini_imagenet_classes.CLASSES.items()
}


def png(image):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png')
  return buffer.getvalue()


def run(*args, **env):
  """Runs Python in another process and captures its output as text."""
  return subprocess.run(
    [sys.executable, *args],
    env=os.environ | {key: str(value) for key, value in env.items()},
    capture_output=True,
    text=True,
  )


# mini-ImageNet with two classes per split


@pytest.fixture
def small_spec(monkeypatch):
  """Replaces the expected counts of mini_imagenet by those of `images`."""
  spec = dataclasses.replace(
    mini_imagenet.SPEC,
    num_classes=dict.fromkeys(data.SPLITS, 2),
    images_per_class=IMAGES,
  )
  monkeypatch.setitem(data.SPECS, 'mini_imagenet', spec)


@pytest.fixture(scope='session')
def images():
  """Random images by split and class: uint8 [IMAGES, 84, 84, 3]."""
  rng = np.random.default_rng(0)
  return {
    split: {
      wnid: rng.integers(0, 256, (IMAGES, 84, 84, 3), np.uint8)
      for wnid in wnids
    }
    for split, wnids in WNIDS.items()
  }


def image_files(images, pattern, suffix='png'):
  """Yields (path, encoded image); `pattern` uses {split}, {wnid}, {name}."""
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


def write_csv(folder, images, pattern='{wnid}{i:08d}.jpg'):
  for split, classes in images.items():
    with open(folder / f'{split}.csv', 'w', newline='') as file:
      rows = csv.writer(file)
      rows.writerow(['filename', 'label'])
      for wnid, stack in classes.items():
        for i in range(len(stack)):
          rows.writerow([pattern.format(wnid=wnid, i=i), wnid])


def csv_and_flat_images(folder, images):
  write_csv(folder, images)
  write_files(folder, image_files(images, 'images/{name}', 'jpg'))


def csv_and_class_folders(folder, images):
  write_csv(folder, images)
  write_files(folder, image_files(images, '{wnid}/{name}'))
  write_files(
    folder, [('images/n0000000000000000.png', b'not in the CSV files')]
  )


def write_numbered_images(folder, images):
  for classes in images.values():
    for wnid, stack in classes.items():
      files = [(f'{wnid}/{i}.png', png(stack[i])) for i in range(len(stack))]
      write_files(folder, files)


def csv_and_numbered_images(folder, images):
  write_csv(folder, images, '{wnid}/{i}.jpg')
  write_numbered_images(folder / 'images', images)


def csv_with_longer_paths_and_numbered_images(folder, images):
  write_csv(folder, images, '/home/me/images/{wnid}/{i}.jpg')
  write_numbered_images(folder, images)


def csv_without_folders_and_numbered_images(folder, images):
  write_csv(folder, images, '{i}.jpg')
  write_numbered_images(folder, images)


def class_folders(folder, images):
  write_files(folder, image_files(images, '{wnid}/{name}'))


def class_folders_by_split(folder, images):
  write_files(folder, image_files(images, '{split}/{wnid}/{name}', 'JPEG'))


def zipped_class_folders(folder, images):
  write_csv(folder, images)
  entries = list(image_files(images, '{wnid}/{name}'))
  write_zip(folder / 'a.zip', [*entries[::2], ('__MACOSX/._a.png', b'junk')])
  write_zip(folder / 'b.zip', entries[1::2])


def zipped_images(folder, images):
  write_csv(folder, images)
  write_zip(folder / 'images.zip', image_files(images, 'images/{name}'))


def write_pickles(folder, images, dump):
  first = 0
  for split, classes in images.items():
    labels = [first + k for k in range(len(classes)) for _ in range(IMAGES)]
    content = {
      'data': np.concatenate(list(classes.values())),
      'labels': labels,
      'catname2label': {name: first + k for k, name in enumerate(classes)},
    }
    path = folder / mini_imagenet.PICKLE_FILES[split]
    path.write_bytes(dump(content))
    first += len(classes)


def pickles_protocol_2(folder, images):
  write_pickles(folder, images, lambda content: pickle.dumps(content, 2))


def pickles_protocol_5(folder, images):
  write_pickles(folder, images, lambda content: pickle.dumps(content, 5))


def pickles_shuffled(folder, images):
  def dump(content):
    order = np.arange(len(content['labels'])).reshape(-1, IMAGES).T.ravel()
    labels = np.array(content['labels'])[order]
    return pickle.dumps(
      content | {'data': content['data'][order], 'labels': list(labels)}
    )

  write_pickles(folder, images, dump)


def to_bytes(value):
  """Encodes the strings in a dict, or in a dict of dicts."""
  if isinstance(value, str):
    return value.encode()
  if isinstance(value, dict):
    return {to_bytes(key): to_bytes(item) for key, item in value.items()}
  return value


def pickles_with_bytes_keys(folder, images):
  write_pickles(
    folder, images, lambda content: pickle.dumps(to_bytes(content), 2)
  )


def cache_pickles(folder, images, convert=lambda content: content):
  for split, classes in images.items():
    rows = np.random.default_rng(0).permutation(IMAGES * len(classes))
    rows = np.sort(rows.reshape(len(classes), IMAGES))
    data = np.empty((rows.size, 84, 84, 3), np.uint8)
    class_dict = {}
    for wnid, numbers in zip(reversed(classes), rows.tolist(), strict=True):
      class_dict[wnid], data[numbers] = numbers, classes[wnid]
    content = convert({'image_data': data, 'class_dict': class_dict})
    path = folder / mini_imagenet.CACHE_FILES[split]
    path.write_bytes(pickle.dumps(content))


def cache_pickles_with_bytes_keys(folder, images):
  cache_pickles(folder, images, to_bytes)


def pickles_of_python_2(folder, images):
  write_pickles(folder, images, pickle_of_python_2)


def pickle_of_python_2(content):
  """Returns a pickle as Python 2 writes it, with bytes stored as str."""

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
  csv_and_flat_images,
  csv_and_class_folders,
  csv_and_numbered_images,
  csv_with_longer_paths_and_numbered_images,
  csv_without_folders_and_numbered_images,
  class_folders,
  class_folders_by_split,
  zipped_class_folders,
  zipped_images,
  pickles_protocol_2,
  pickles_protocol_5,
  pickles_shuffled,
  pickles_of_python_2,
  pickles_with_bytes_keys,
  cache_pickles,
  cache_pickles_with_bytes_keys,
]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_same_dataset(
  tmp_path, small_spec, images, layout
):
  source = tmp_path / 'source'
  source.mkdir()
  layout(source, images)
  data.prepare('mini_imagenet', source, tmp_path)
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


def rows_of(*rows):
  return {
    'train': [csv_splits.Row(pathlib.PurePosixPath(p), n) for p, n in rows]
  }


def find_rows(images, *rows):
  """Returns the images that the rows of train.csv match, by class."""
  images = {pathlib.PurePosixPath(image): image for image in images}
  rows = rows_of(*rows)
  splits = csv_splits.records_from_rows('x', pathlib.Path('D'), images, rows)
  return [(record.label, record.read) for record in splits['train']]


@pytest.mark.parametrize(
  ('images', 'row', 'expected'),
  [
    (['a/1.png', 'b/1.png'], ('b/1.jpg', 'b'), 'b/1.png'),
    (['a/1.png', 'b/1.png'], ('1.jpg', 'b'), 'b/1.png'),
    (['a/1.png', 'b/1.png'], ('x/y/b/1.jpg', 'q'), 'b/1.png'),
    (['a/b/1.png', 'c/b/1.png'], ('a/b/1.jpg', 'q'), 'a/b/1.png'),
    (['a/1.png', 'a/1.jpg'], ('a/1.jpg', 'a'), 'a/1.jpg'),
    (['a/1.v2.png', 'a/1.png'], ('1.v2', 'q'), 'a/1.v2.png'),
    (['flat/x.png', 'flat/y.png'], ('a/y.jpg', 'a'), 'flat/y.png'),
  ],
)
def test_csv_row_matches_the_longest_unique_path(images, row, expected):
  assert find_rows(images, row) == [(row[1], expected)]


@pytest.mark.parametrize(
  ('images', 'rows', 'message'),
  [
    (
      ['a/1.png', 'b/1.png', 'b/2.png'],
      [('1.jpg', 'q')],
      'x: train.csv lists 1.jpg, which matches 2 of the 3 images under D:'
      ' a/1.png, b/1.png',
    ),
    (
      [f'{c}/1.png' for c in 'abcdefg'],
      [('z/1.jpg', 'q')],
      'x: train.csv lists z/1.jpg, which matches 7 of the 7 images under D:'
      ' a/1.png, b/1.png, c/1.png, d/1.png, e/1.png and 2 more',
    ),
    (  # not b/2.png, although no other image is named 2
      ['a/1.png', 'b/2.png'],
      [('a/1.jpg', 'a'), ('a/2.jpg', 'a')],
      'x: train.csv lists a/2.jpg, which matches none of the 2 images under D',
    ),
    (
      ['a/1.png', 'a/2.png'],
      [('a/1.jpg', 'a'), ('1.jpg', 'b')],
      "x: train.csv lists a/1.jpg with label 'a' and 1.jpg with label 'b',"
      ' which both match a/1.png',
    ),
  ],
)
def test_csv_row_without_unique_image_raises_error(images, rows, message):
  with pytest.raises(UserError) as caught:
    find_rows(images, *rows)
  assert str(caught.value) == message


@pytest.mark.parametrize(
  ('header', 'row'),
  [('', 'a/1.jpg,b'), ('filename,class', 'a/1.jpg,b')]
  + [(',Label,Filename', '0,b,a/1.jpg')],
)
def test_csv_columns_are_found_by_name(tmp_path, header, row):
  (tmp_path / 'train.csv').write_text(f'{header}\n\n{row}\n')
  found = csv_splits.read_csv('x', tmp_path / 'train.csv')
  assert found == rows_of(('a/1.jpg', 'b'))['train']


def write_shared(tmp_path, images_of):
  """Writes a data set whose images are uniform, given their gray levels."""
  spec = records.DatasetSpec('toy', (2, 2, 1), '', lambda _: {})
  splits = {
    split: [
      records.Record(label, str(i), lambda n=n: png(np.full((2, 2), n, 'B')))
      for label, levels in classes.items()
      for i, n in enumerate(levels)
    ]
    for split, classes in images_of.items()
  }
  store.write_dataset(tmp_path / 'toy', spec, splits)


def test_classes_with_the_same_images_raise_error_and_write_nothing(tmp_path):
  classes = {
    'train': {'cat': [1, 2, 3], 'dog': [4, 5]},
    'val': {'cow': [6, 7]},
    'test': {'kitten': [8, 3, 2], 'owl': [9, 4]},
  }
  with pytest.raises(UserError) as caught:
    write_shared(tmp_path, classes)
  assert str(caught.value) == (
    "toy: classes share most of their images: 2 images in 'cat' and 'kitten';"
    ' correct the source files'
  )
  assert not (tmp_path / 'toy').exists()


def test_few_images_in_several_classes_are_a_warning(tmp_path, capsys):
  classes = {
    'train': {'cat': [1, 2, 3, 4], 'dog': [2, 5, 5, 20, 21]},
    'val': {'cow': [6, 1, 1, 8, 11, 12, 13]},
    'test': {'owl': [8, 9, 6, 7], 'auk': [5, 10]},
  }
  write_shared(tmp_path, classes)
  assert capsys.readouterr().err == (
    "warning: toy: classes share a few images: 2 images in 'cow' and 'owl';"
    " 1 image in 'cat' and 'dog'; 1 image in 'cat' and 'cow'; 1 image in 'dog'"
    " and 'auk'\n"
  )


def test_class_sizes_may_differ_and_padding_repeats_an_image(tmp_path):
  spec = records.DatasetSpec('toy', (2, 2, 1), '', lambda _: {})
  sizes = {'a': 3, 'b': 1, 'c': 2}
  class_records = [
    records.Record(label, str(i), lambda n=n: png(np.full((2, 2), n, np.uint8)))
    for n, (label, size) in enumerate(sizes.items())
    for i in range(size)
  ]
  splits = {
    split: [r._replace(label=f'{split} {r.label}') for r in class_records]
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


def test_downscaling_is_antialiased():
  checkerboard = np.uint8(np.indices((168, 168)).sum(0) % 2 * 255)
  pixels = store.decode_image(png(checkerboard), mini_imagenet.SPEC)
  assert pixels.shape == (84, 84, 3)
  assert np.all(np.abs(pixels.astype(int) - 127) <= 5)


@pytest.mark.parametrize(
  ('layout', 'removed', 'message'),
  [
    (
      class_folders,
      f'{WNIDS["val"][1]}/{WNIDS["val"][1]}00000001.png',
      'has 2 images, expected 3',
    ),
    (
      csv_and_flat_images,
      f'images/{WNIDS["test"][0]}00000002.jpg',
      'test.csv lists',
    ),
  ],
)
def test_missing_image_is_reported_with_its_class(
  tmp_path, small_spec, images, layout, removed, message
):
  layout(tmp_path, images)
  (tmp_path / removed).unlink()
  with pytest.raises(UserError, match=message) as caught:
    data.prepare('mini_imagenet', tmp_path, tmp_path / 'prepared')
  assert removed.split('/')[-1][:9] in str(caught.value)
  assert not (tmp_path / 'prepared').exists()


def test_missing_class_raises_error_with_counts(tmp_path, small_spec, images):
  class_folders(tmp_path, images | {'val': {}})
  with pytest.raises(UserError, match="'val' has 0 classes, expected 2"):
    data.prepare('mini_imagenet', tmp_path, tmp_path / 'prepared')


def test_class_in_two_splits_raises_error():
  spec = records.DatasetSpec('toy', (2, 2, 1), '', lambda _: {})
  record = records.Record('a', '0', bytes)
  with pytest.raises(UserError, match="class 'a' is in several splits"):
    records.verify_counts(spec, dict.fromkeys(data.SPLITS, [record]))


@pytest.mark.parametrize(
  'content',
  [b'', b'GIF89a', png(np.ones((9, 9)) > 0)],
  ids=['empty', 'truncated GIF', 'truncated PNG'],
)
def test_broken_image_is_reported_with_its_name(
  tmp_path, small_spec, images, content
):
  class_folders(tmp_path, images)
  stem = f'{WNIDS["train"][1]}00000002'
  (tmp_path / WNIDS['train'][1] / f'{stem}.png').write_bytes(content[:40])
  with pytest.raises(UserError, match=f"cannot read image '{stem}'"):
    data.prepare('mini_imagenet', tmp_path, tmp_path / 'prepared')
  assert not list((tmp_path / 'prepared').rglob('*.*'))


@pytest.mark.parametrize('name', ['../a.png', '/a.png', 'C:\\a.png', 'b/../a'])
def test_zip_entry_with_path_outside_of_archive_raises_error(tmp_path, name):
  write_zip(tmp_path / 'bad.zip', [(name, b'')])
  with pytest.raises(UserError, match='outside of the archive'):
    records.scan_images(tmp_path)


def test_broken_zip_raises_error_with_path(tmp_path):
  (tmp_path / 'bad.zip').write_bytes(b'PK nothing')
  with pytest.raises(UserError, match='cannot read the archive .*bad.zip'):
    records.scan_images(tmp_path)


# Pickles


class Call:
  """Is pickled as a call of a function."""

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
  ids=['os.system', 'eval', 'open', 'numpy.save', 'getattr'],
)
def test_pickle_with_calls_raises_error_without_running_them(
  tmp_path, protocol, call
):
  touched = tmp_path / 'touched'
  evil = tmp_path / 'evil.pickle'
  evil.write_bytes(pickle.dumps({'data': call(touched)}, protocol))
  with pytest.raises(UserError, match='unsafe pickle .*evil.pickle: '):
    safe_pickle.load(evil)
  assert not list(tmp_path.glob('touched*'))


def test_pickles_of_arrays_are_loaded(tmp_path):
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


@pytest.mark.parametrize(
  'content',
  [b'', b'nonsense', pickle.dumps([1])[:-2]],
  ids=['empty', 'text', 'truncated'],
)
def test_broken_pickle_raises_error_with_path(tmp_path, content):
  path = tmp_path / 'broken.pickle'
  path.write_bytes(content)
  with pytest.raises(UserError, match='cannot read the pickle .*broken'):
    safe_pickle.load(path)


def test_pickles_with_wrong_image_shape_raise_error(
  tmp_path, small_spec, images
):
  small_images = {
    split: {wnid: stack[:, :32, :32] for wnid, stack in classes.items()}
    for split, classes in images.items()
  }
  pickles_protocol_5(tmp_path, small_images)
  with pytest.raises(UserError, match=r'uint8\[6, 32, 32, 3\]'):
    data.prepare('mini_imagenet', tmp_path, tmp_path)


@pytest.mark.parametrize(
  ('class_dict', 'message'),
  [
    ({'a': [0], 'b': [0]}, 'image 0 of class b in class_dict is listed twice'),
    ({'a': [0], 'b': [2]}, 'image 2 of class b .* not one of the 2 images'),
    ({'a': [0], 'b': [-1]}, 'image -1 of class b .* not one of the 2 images'),
    ({'a': [0]}, 'images without a class'),
    ([['a', [0]]], 'x: .*a.pkl: '),
  ],
)
def test_cache_pickle_with_wrong_class_dict_raises_error(
  tmp_path, class_dict, message
):
  content = {'image_data': np.zeros((2, 4, 4, 3), np.uint8)}
  content = pickle.dumps(content | {'class_dict': class_dict})
  (tmp_path / 'a.pkl').write_bytes(content)
  with pytest.raises(UserError, match=message):
    safe_pickle.load_images('x', tmp_path / 'a.pkl', (4, 4, 3))


@pytest.mark.parametrize('name', ['PICKLE_FILES', 'CACHE_FILES'])
def test_missing_pickle_of_a_split_is_named(tmp_path, name):
  file_names = getattr(mini_imagenet, name)
  (tmp_path / file_names['val']).touch()
  with pytest.raises(UserError) as caught:
    data.prepare('mini_imagenet', tmp_path, tmp_path)
  assert str(caught.value) == (
    f'mini_imagenet: {tmp_path} contains {file_names["val"]} but not'
    f' {file_names["train"]}, {file_names["test"]}'
  )


NON_DATA = [
  (b'', 'empty file'),
  (
    b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
    'Git LFS pointer instead of the file; run: git lfs pull',
  ),
  (
    b'\0\0\0\x18ftypheic\0\0\0\0mif1heic',
    'HEIC, AVIF or video file; convert it to JPEG',
  ),
  *(
    (content, 'HTML page instead of data; download the file again')
    for content in (
      b'\n<!DOCTYPE html>\n<html><head><title>Quota exceeded</title>',
      b'\xef\xbb\xbf<HTML lang="en">',
      b'<?xml version="1.0"?>\n<!-- x -->\n<!doctype HTML PUBLIC "x">',
    )
  ),
]


@pytest.mark.parametrize(('content', 'reason'), NON_DATA)
@pytest.mark.parametrize(
  ('file', 'read'),
  [
    ('a.pickle', safe_pickle.load),
    ('a.pkl', lambda path: safe_pickle.find_byte_ranges(path, b'x')),
    ('a.npz', lambda path: npz.RowReader(path, 'images')),
    ('a.csv', lambda path: csv_splits.read_csv('x', path)),
    ('a.zip', records.scan_images),
    ('a.jpg', lambda path: images_lib.read_image(path, omniglot.SPEC)),
  ],
)
def test_file_that_is_not_data_is_described(
  tmp_path, content, reason, file, read
):
  path = tmp_path / file
  path.write_bytes(content)
  with pytest.raises(ValueError) as caught:
    read(path)
  where = '' if file == 'a.jpg' else f'.*cannot read .*{path}: '
  assert re.fullmatch(where + re.escape(reason), str(caught.value))


# Missing and damaged files, interrupted preparation


def test_error_for_unprepared_dataset_explains_preparation(tmp_path):
  with pytest.raises(UserError) as caught:
    data.load_dataset('mini_imagenet', 'train', tmp_path)
  message = str(caught.value)
  assert str(tmp_path / 'mini_imagenet') in message
  assert 'maml_jax.data prepare mini_imagenet --from DIR' in message
  assert f'--data_dir {tmp_path}' in message
  for layout in ('train.csv', 'images/', 'class folders', 'zip', '.pickle'):
    assert layout in message


@pytest.mark.parametrize('source', [None, 'nowhere', '.'])
@pytest.mark.parametrize('name', ['mini_imagenet', 'omniglot'])
def test_error_for_missing_source_lists_accepted_layouts(
  tmp_path, name, source
):
  source = source and tmp_path / source
  with pytest.raises(UserError, match='where DIR contains one of') as caught:
    data.prepare(name, source, tmp_path)
  assert str(source or 'no source directory given') in str(caught.value)


def test_unknown_dataset_and_split_suggest_closest_name():
  with pytest.raises(UserError, match='did you mean mini_imagenet'):
    data.load_dataset('miniimagenet', 'train')
  with pytest.raises(UserError, match='did you mean val'):
    data.load_dataset('glyphs', 'vall')


def test_data_dir_defaults_to_environment_variable_then_cache(
  monkeypatch, tmp_path
):
  monkeypatch.setenv('MAML_JAX_DATA', str(tmp_path))
  assert data.prepared_dir('glyphs').is_relative_to(tmp_path)
  monkeypatch.delenv('MAML_JAX_DATA')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  home = tmp_path / 'home' / '.cache' / 'maml_jax'
  assert data.prepared_dir('glyphs').is_relative_to(home)


@pytest.fixture
def prepared(tmp_path, small_spec, images):
  """A prepared small mini-ImageNet: its data_dir and its directory."""
  source = tmp_path / 'source'
  class_folders(source, images)
  return tmp_path, data.prepare('mini_imagenet', source, tmp_path)


def truncate(path):
  os.truncate(path, path.stat().st_size - 9)


def flip_bit(path):
  content = bytearray(path.read_bytes())
  content[-9] ^= 4
  path.write_bytes(content)


@pytest.mark.parametrize('damage', [os.remove, truncate, flip_bit])
@pytest.mark.parametrize('file', ['image.npy', 'classes.json'])
def test_damaged_arrays_are_rebuilt(prepared, images, damage, file):
  data_dir, root = prepared
  damage(root / 'arrays' / 'val' / file)
  with pytest.warns(UserWarning, match='arrays/val is damaged: rebuilding'):
    dataset = data.load_dataset('mini_imagenet', 'val', data_dir)
  expected = np.concatenate(list(images['val'].values()))
  np.testing.assert_array_equal(dataset.images, expected)


@pytest.mark.parametrize('damage', [os.remove, truncate, flip_bit])
def test_arrays_are_loaded_despite_damaged_digests(prepared, images, damage):
  data_dir, root = prepared
  damage(root / 'arrays' / 'val' / store.DIGESTS_FILE)
  expected = np.concatenate(list(images['val'].values()))
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    dataset = data.load_dataset('mini_imagenet', 'val', data_dir)
  np.testing.assert_array_equal(dataset.images, expected)


def test_digest_is_verified_once_after_a_copy(prepared, monkeypatch):
  data_dir, root = prepared
  image = root / 'arrays' / 'val' / 'image.npy'
  os.utime(image, (1, 1))
  hashed = []
  file_digest = hashlib.file_digest

  def spy(file, algorithm):
    hashed.append(pathlib.Path(file.name))
    return file_digest(file, algorithm)

  monkeypatch.setattr(hashlib, 'file_digest', spy)
  for _ in range(2):
    data.load_dataset('mini_imagenet', 'val', data_dir)
  assert hashed == [image]


@pytest.mark.parametrize('pattern', ['*val.array_record*', 'dataset_info.json'])
def test_damaged_tfds_files_raise_error(prepared, pattern):
  data_dir, root = prepared
  shutil.rmtree(root / 'arrays' / 'val')
  (file,) = root.glob(pattern)
  os.truncate(file, 10)
  with pytest.raises(UserError, match='cannot be read from') as caught:
    data.load_dataset('mini_imagenet', 'val', data_dir)
  assert 'prepare mini_imagenet' in str(caught.value)


def test_interrupted_preparation_keeps_existing_dataset(prepared, monkeypatch):
  data_dir, root = prepared
  before = sorted(data_dir.rglob('*'))

  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(store, 'decode_image', fail)
  with pytest.raises(KeyboardInterrupt):
    data.prepare('mini_imagenet', data_dir / 'source', data_dir)
  assert sorted(data_dir.rglob('*')) == before
  data.load_dataset('mini_imagenet', 'train', data_dir)


def test_unwritable_data_dir_raises_error(tmp_path, small_spec, images):
  class_folders(tmp_path / 'source', images)
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='mini_imagenet: cannot write'):
    data.prepare('mini_imagenet', tmp_path / 'source', tmp_path / 'file')


# Omniglot


ALPHABETS = {'Aleph': 2, 'Beth': 1, 'Gimel': 2}


def drawings(top, alphabets=ALPHABETS):
  """Yields (path, encoded image) of a black bar at the left edge, on white.

  The right edge of the bar differs between the drawings: it is a binary number.
  """
  for alphabet, characters in alphabets.items():
    for c in range(characters):
      for i in range(20):
        number = 20 * (2 * list(ALPHABETS).index(alphabet) + c) + i
        bits = [number >> k & 1 for k in range(7)]
        image = np.full((105, 105), 255, np.uint8)
        image[:, :15] = 0
        image[np.repeat(bits, 15) > 0, 15:18] = 0
        name = f'character{c + 1:02d}/0{c:03d}_{i + 1:02d}.png'
        yield f'{top}/{alphabet}/{name}', png(image)


def zipped_drawings(folder):
  entries = list(drawings('images_background_small1'))
  write_zip(folder / 'images_background_small1.zip', entries)
  again = drawings('images_background_small2', {'Beth': 1})
  write_zip(folder / 'images_background_small2.zip', again)


def extracted_drawings(folder):
  write_files(folder, drawings('images_background'))


@pytest.mark.parametrize('layout', [zipped_drawings, extracted_drawings])
def test_omniglot_rotations_are_new_classes(tmp_path, layout):
  layout(tmp_path)
  data.prepare('omniglot', tmp_path, tmp_path)
  train = data.load_dataset('omniglot', 'train', tmp_path)
  assert train.images.shape == (4 * 2 * 20, 28, 28, 1)
  np.testing.assert_array_equal(train.size, [20] * 8)
  first = train.images[train.index[0, 0]]
  assert np.all(first[:, :3] == 255) and np.all(first[:, 5:] == 0)
  for k in range(4):
    rotated = train.images[train.index[2 * k, 0]]
    np.testing.assert_array_equal(rotated, np.rot90(first, k))
  names = data.class_names('omniglot', 'train', tmp_path)
  assert names[:3] == [
    'Aleph/character01',
    'Aleph/character02',
    'Aleph/character01, 90 degrees',
  ]
  for split, alphabet in (('test', 'Beth'), ('val', 'Gimel')):
    names = data.class_names('omniglot', split, tmp_path)
    assert {name.split('/')[0] for name in names} == {alphabet}


def test_full_omniglot_is_split_by_character():
  names = [f'{a:02d}/{c:02d}' for a in range(50) for c in range(33)]
  split_of = omniglot.assign_splits(names[: omniglot.NUM_CHARACTERS])
  sizes = [list(split_of.values()).count(split) for split in data.SPLITS]
  assert sizes == [1100, 100, 423]


def test_omniglot_with_two_alphabets_raises_error(tmp_path):
  write_files(tmp_path, drawings('images', {'Aleph': 1, 'Beth': 1}))
  with pytest.raises(UserError, match='at least 3 alphabets .* found 2: '):
    data.prepare('omniglot', tmp_path, tmp_path)


# Command line and other processes


def test_command_line_prepares_and_lists_datasets(tmp_path):
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
  message = 'glyphs is generated and takes no source files: omit --from'
  assert done.stderr == f'{message} {tmp_path}\n'


def test_loading_imports_neither_tfds_nor_pillow(tmp_path):
  zipped_drawings(tmp_path)
  data.prepare('omniglot', tmp_path, tmp_path / 'prepared')
  script = (
    'import sys; from maml_jax import data;'
    'print(len(data.load_dataset("omniglot", "test").size));'
    'print({"PIL", "tensorflow", "tensorflow_datasets"} & {*sys.modules})'
  )
  env = {'MAML_JAX_DATA': tmp_path / 'prepared'}
  assert run('-c', script, **env).stdout == '4\nset()\n'


def test_killed_preparation_leaves_no_dataset_and_is_cleaned_up(tmp_path):
  zipped_drawings(tmp_path)
  prepared = tmp_path / 'prepared'
  killed = (
    'import os, signal, sys; from maml_jax import data;'
    'from maml_jax.data import store;'
    'store.decode_image = lambda *_: os.kill(os.getpid(), signal.SIGKILL);'
    'data.prepare("omniglot", sys.argv[1], sys.argv[2])'
  )
  assert run('-c', killed, tmp_path, prepared).returncode == -signal.SIGKILL
  with pytest.raises(UserError, match='omniglot is not prepared'):
    data.load_dataset('omniglot', 'train', prepared)
  (stale,) = (prepared / 'omniglot').glob('.*')
  data.prepare('omniglot', tmp_path, prepared)
  assert not stale.exists()
  assert len(data.load_dataset('omniglot', 'train', prepared).size) == 8


def test_temporary_directories_in_use_are_kept(tmp_path):
  target, other = tmp_path / '1.0.0', tmp_path / '1.0.1'
  stale, foreign = tmp_path / '.1.0.0-stale', tmp_path / '.1.0.1-x'
  for folder in (stale / 'new', foreign):
    folder.mkdir(parents=True)
  with store.atomic_directory(target) as one:
    (one / 'file').write_text('one')
    assert not stale.exists() and foreign.exists()
    with store.atomic_directory(target) as two:
      (two / 'file').write_text('two')
      assert one.is_dir()
    assert (target / 'file').read_text() == 'two'
  assert (target / 'file').read_text() == 'one'
  with store.atomic_directory(other):
    assert not foreign.exists()
  assert sorted(tmp_path.iterdir()) == [target, other]


# Maps stored pixels to the upright image, by EXIF orientation.
TO_UPRIGHT = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize('orientation', TO_UPRIGHT)
@pytest.mark.parametrize('suffix, atol', [('png', 0), ('jpeg', 40)])
def test_exif_orientation_is_applied(orientation, suffix, atol):
  blocks = np.random.default_rng(0).integers(0, 2, (6, 6, 1)) * 200
  image = blocks.repeat(14, 0).repeat(14, 1).repeat(3, 2).astype(np.uint8)
  exif = Image.Exif()
  exif[0x0112] = orientation
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, suffix, exif=exif, quality=95)
  pixels = store.decode_image(buffer.getvalue(), mini_imagenet.SPEC)
  expected = TO_UPRIGHT[orientation](image)
  np.testing.assert_allclose(pixels.astype(int), expected, atol=atol, rtol=0)


def test_broken_exif_data_is_ignored():
  image = np.full((84, 84, 3), 7, np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png', exif=b'Exif\0\0MM\0*\0\0\xff')
  pixels = store.decode_image(buffer.getvalue(), mini_imagenet.SPEC)
  np.testing.assert_array_equal(pixels, image)


# Real files


def test_real_mini_imagenet_is_complete(shared):
  spec = data.spec('mini_imagenet')
  splits = spec.find_records(shared / 'data' / 'mini_imagenet')
  records.verify_counts(spec, splits)
  for record in splits['test'][::600]:
    pixels = store.decode_image(record.read(), spec)
    assert 20 < pixels.mean() < 235


def test_real_omniglot_is_split_by_alphabet(shared, tmp_path):
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
  assert 0.05 < (test.images > 127).mean() < 0.2  # thin light strokes on black
