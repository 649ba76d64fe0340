"""Data sets other than mini-ImageNet and Omniglot, in their usual layouts."""

import dataclasses
import functools
import io
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from maml_jax import data
from maml_jax.data import npz, records, safe_pickle, store
from maml_jax.data.__main__ import main as data_command
from maml_jax.data.datasets import cifar, cifar_fs, fc100
from maml_jax.utils.errors import UserError

PREPARED_FROM_FILES = sorted(
  name for name, spec in data.SPECS.items() if not spec.generated
)
TWO_EACH = dict.fromkeys(data.SPLITS, 2)


@pytest.fixture
def expect_classes(monkeypatch):
  """A function that sets the expected number of classes of a data set."""

  def set_expected(name, **num_classes):
    spec = dataclasses.replace(data.SPECS[name], num_classes=num_classes)
    monkeypatch.setitem(data.SPECS, name, spec)

  return set_expected


def encoded(image, suffix='png'):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, suffix)
  return buffer.getvalue()


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def dump(path, content, protocol=2):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize('name', PREPARED_FROM_FILES)
def test_error_for_unprepared_dataset_explains_preparation(tmp_path, name):
  with pytest.raises(UserError) as caught:
    data.load_dataset(name, 'train', tmp_path)
  message = str(caught.value)
  assert f'maml_jax.data prepare {name} --from DIR' in message
  for line in data.spec(name).layout.splitlines():
    assert line in message
  for source in (None, tmp_path / 'nowhere', tmp_path):
    with pytest.raises(UserError) as caught:
      data.prepare(name, source, tmp_path / 'prepared')
    assert 'where DIR contains one of' in str(caught.value)
  assert not (tmp_path / 'prepared').exists()


@pytest.mark.parametrize('name', PREPARED_FROM_FILES)
def test_mean_and_std_have_one_value_per_channel(name):
  spec = data.spec(name)
  for values in (spec.mean, spec.std):
    assert values is None or len(values) == spec.image_shape[-1]
    assert values is None or all(0 < value < 1 for value in values)


def test_split_without_images_raises_error():
  spec = records.DatasetSpec('toy', (2, 2, 1), '', lambda _: {})
  record = records.Record('a', '0', bytes)
  with pytest.raises(UserError, match="split 'val' has no images"):
    records.verify_counts(spec, {'train': [record], 'val': [], 'test': []})


# Data sets larger than memory


def test_images_are_prepared_one_at_a_time_into_several_files(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(store, 'IMAGES_PER_FILE', 30)
  spec = records.DatasetSpec('toy', (4, 4, 3), '', lambda _: {})
  images = [np.full((4, 4, 3), i, np.uint8) for i in range(100)]

  def read(i):
    return encoded(images[i]) + bytes(500_000)  # PNG readers ignore the end

  splits = {
    split: [
      records.Record(f'{split} {i // 50}', f'{i}', functools.partial(read, i))
      for i in range(size)
    ]
    for split, size in (('train', 100), ('val', 1), ('test', 1))
  }
  store.write_dataset(
    tmp_path / 'warm-up', spec, splits | {'train': splits['val']}
  )
  tracemalloc.start()
  store.write_dataset(tmp_path / 'toy', spec, splits)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 10e6  # the encoded images have 50e6 bytes
  assert len(list((tmp_path / 'toy').glob('*train.array_record*'))) == 4
  dataset = store.read_arrays(tmp_path / 'toy', spec, 'train')
  np.testing.assert_array_equal(dataset.images, images)
  np.testing.assert_array_equal(dataset.size, [50, 50])


# Rows of .npz files and byte strings in pickles


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_rows_are_read_in_any_order(tmp_path, save):
  array = noise(5, 4, 3)
  save(tmp_path / 'a.npz', first=np.ones(3), second=array)
  reader = npz.RowReader(tmp_path / 'a.npz', 'second')
  assert (len(reader), reader.shape, reader.dtype) == (5, (5, 4, 3), np.uint8)
  for i in (0, 1, 4, 2, 2, 0):
    np.testing.assert_array_equal(reader[i], array[i])


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_rows_are_read_without_loading_the_array(tmp_path, save):
  save(tmp_path / 'a.npz', images=np.zeros((4000, 84, 84), np.uint8))  # 28 MB
  tracemalloc.start()
  reader = npz.RowReader(tmp_path / 'a.npz', 'images')
  assert sum(int(reader[i].max()) for i in range(0, 4000, 40)) == 0
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 2e6


@pytest.mark.parametrize(
  'array',
  [
    np.array([{}, 1], object),
    np.asfortranarray(np.eye(3)),
  ],
)
def test_npz_arrays_of_objects_or_fortran_order_raise_error(tmp_path, array):
  np.savez(tmp_path / 'a.npz', images=array)
  with pytest.raises(UserError, match=r"'images' of .*a.npz: .*in C order"):
    npz.RowReader(tmp_path / 'a.npz', 'images')
  with pytest.raises(UserError, match=r"cannot read 'other' of .*a.npz"):
    npz.RowReader(tmp_path / 'a.npz', 'other')


def pickle_of_python_2(blobs):
  """Returns a pickled list of str as Python 2 writes it, with its raw bytes."""
  parts = (
    b'U' + bytes([len(blob)]) + blob
    if len(blob) < 256
    else b'T' + len(blob).to_bytes(4, 'little') + blob
    for blob in blobs
  )
  return b'\x80\x02](' + b''.join(parts) + b'e.'


@pytest.mark.parametrize('protocol', [*range(2, 6), 'Python 2'])
@pytest.mark.parametrize('as_arrays', [True, False])
def test_byte_strings_are_found_in_pickles(tmp_path, protocol, as_arrays):
  sizes = (7, 200, 300, 70_000)
  blobs = [b'\x89PNG' + noise(n, seed=n).tobytes() for n in sizes]
  path = tmp_path / 'a.pkl'
  if protocol == 'Python 2':
    path.write_bytes(pickle_of_python_2(blobs))
  else:
    arrays = [np.frombuffer(blob, np.uint8)[:, None] for blob in blobs]
    dump(path, [b'other', *(arrays if as_arrays else blobs)], protocol)
  ranges = safe_pickle.find_byte_ranges(path, b'\x89PNG')
  assert [byte_range.read() for byte_range in ranges] == blobs


def test_byte_strings_in_broken_pickle_raise_error(tmp_path):
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps([b'\x89PNG' * 99])[:-20])
  with pytest.raises(UserError, match='cannot read the pickle .*a.pkl'):
    safe_pickle.find_byte_ranges(path, b'\x89PNG')


# tiered-ImageNet


TIERED_LABELS = [0, 0, 1, 1, 1]


def tiered_images():
  """Returns random RGB images [5, 84, 84, 3] by split, of two classes."""
  return {
    split: noise(5, 84, 84, 3, seed=k) for k, split in enumerate(data.SPLITS)
  }


def npz_and_labels(folder, images):
  for split, stack in images.items():
    np.savez(folder / f'{split}_images.npz', images=stack[..., ::-1])
    dump(folder / f'{split}_labels.pkl', {'labels': TIERED_LABELS})


def compressed_npz_and_names(folder, images):
  for split, stack in images.items():
    path = folder / f'{split}_images.npz'
    np.savez_compressed(path, images=stack[..., ::-1])
    content = {
      'label_specific': np.array(TIERED_LABELS),
      'label_general': np.zeros(5, int),
      'label_specific_str': ['crane', 'crane'],
    }
    dump(folder / f'{split}_labels.pkl', content)


def shuffled_npz(folder, images):
  order = [2, 0, 3, 1, 4]
  for split, stack in images.items():
    bgr = stack[order][..., ::-1]
    np.savez(folder / f'{split}_images.npz', images=bgr)
    labels = np.array(TIERED_LABELS)[order] + 351
    dump(folder / f'{split}_labels.pkl', {'labels': labels})


def png_arrays(folder, images):
  for split, stack in images.items():
    arrays = [np.frombuffer(encoded(i), np.uint8)[:, None] for i in stack]
    dump(folder / f'{split}_images_png.pkl', arrays)
    dump(folder / f'{split}_labels.pkl', {'label_specific': TIERED_LABELS})


def png_strings(folder, images):
  for split, stack in images.items():
    path = folder / f'{split}_images_png.pkl'
    path.write_bytes(pickle_of_python_2([encoded(i) for i in stack]))
    dump(folder / f'{split}_labels.pkl', {'label_specific': TIERED_LABELS})


@pytest.mark.parametrize(
  'layout',
  [
    npz_and_labels,
    compressed_npz_and_names,
    shuffled_npz,
    png_arrays,
    png_strings,
  ],
)
def test_tiered_imagenet_layouts_give_the_same_dataset(
  tmp_path, expect_classes, layout
):
  expect_classes('tiered_imagenet', **TWO_EACH)
  images = tiered_images()
  layout(tmp_path, images)
  data.prepare('tiered_imagenet', tmp_path, tmp_path)
  for split, stack in images.items():
    dataset = data.load_dataset('tiered_imagenet', split, tmp_path)
    np.testing.assert_array_equal(dataset.images, stack)
    np.testing.assert_array_equal(dataset.size, [2, 3])
    names = data.class_names('tiered_imagenet', split, tmp_path)
    assert len(names) == 2 and all(f'{split} class' in name for name in names)
    if layout is compressed_npz_and_names:
      assert names[1] == f'crane, {split} class 1'


def test_tiered_imagenet_with_missing_classes_raises_error(tmp_path):
  npz_and_labels(tmp_path, tiered_images())
  with pytest.raises(UserError, match="'train' has 2 classes, expected 351"):
    data.prepare('tiered_imagenet', tmp_path, tmp_path)


@pytest.mark.parametrize(
  ('file', 'content', 'message'),
  [
    (
      'val_labels.pkl',
      {'labels': [0, 1]},
      'contains 5 images, but .* 2 labels',
    ),
    ('val_labels.pkl', {'labels': ['a'] * 5}, 'a dict with integers'),
    ('val_labels.pkl', [1, 2, 3, 4, 5], 'a dict with integers'),
    ('val_labels.pkl', {'labels': print}, 'unsafe pickle .*val_labels.pkl: '),
    (
      'val_images.npz',
      noise(5, 32, 32, 3),
      r'expected images uint8\[N, 84, 84, 3\]',
    ),
  ],
)
def test_tiered_imagenet_with_invalid_files_raises_error(
  tmp_path, file, content, message
):
  npz_and_labels(tmp_path, tiered_images())
  if file.endswith('.npz'):
    np.savez(tmp_path / file, images=content)
  else:
    dump(tmp_path / file, content)
  with pytest.raises(UserError, match=message):
    data.prepare('tiered_imagenet', tmp_path, tmp_path)


# CIFAR-FS and FC100


CIFAR = [('cifar_fs', 'CIFAR_FS_'), ('fc100', 'FC100_')]


def build_tfds(data_dir, tfds_name, labels, splits):
  """Writes a data set with TFDS.

  Args:
    data_dir: the root directory.
    tfds_name: the name of the data set.
    labels: class names, or the number of classes if they have no names.
    splits: {split: [(image, label), ...]}.
  """
  import tensorflow_datasets as tfds

  label_args = {'num_classes' if isinstance(labels, int) else 'names': labels}

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = tfds_name
    VERSION = tfds.core.Version('3.0.2')
    pkg_dir_path = data_dir
    code_path = None

    def _info(self):
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(shape=(None, None, 3)),
            'label': tfds.features.ClassLabel(**label_args),
            'segmentation_mask': tfds.features.Image(shape=(None, None, 1)),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {name: self._generate_examples(name) for name in splits}

    def _generate_examples(self, split):
      for i, (image, label) in enumerate(splits[split]):
        yield (
          i,
          {
            'image': encoded(image),
            'label': label,
            'segmentation_mask': encoded(image[..., 0]),
          },
        )

  builder = Builder(data_dir=data_dir, file_format='array_record')
  builder.download_and_prepare()


@pytest.mark.parametrize('prefixed', [True, False])
@pytest.mark.parametrize(('name', 'prefix'), CIFAR)
def test_cifar_pickles_are_prepared(
  tmp_path, monkeypatch, name, prefix, prefixed
):
  spec = dataclasses.replace(
    data.SPECS[name], num_classes=TWO_EACH, images_per_class=2
  )
  monkeypatch.setitem(data.SPECS, name, spec)
  images = {
    split: noise(4, 32, 32, 3, seed=k) for k, split in enumerate(data.SPLITS)
  }
  for split, stack in images.items():
    path = tmp_path / f'{prefix if prefixed else ""}{split}.pickle'
    dump(path, {'data': stack, 'labels': [7, 3, 7, 3]})
  data.prepare(name, tmp_path, tmp_path)
  for split, stack in images.items():
    dataset = data.load_dataset(name, split, tmp_path)
    np.testing.assert_array_equal(dataset.images, stack[[1, 3, 0, 2]])
    names = data.class_names(name, split, tmp_path)
    assert names == [f'{split} class 3', f'{split} class 7']


@pytest.mark.parametrize('folder', ['.', 'cifar100', 'cifar100/3.0.2'])
@pytest.mark.parametrize(
  ('name', 'val', 'test'),
  [
    ('cifar_fs', 'beaver', 'baby'),
    ('fc100', 'wolf', 'baby'),
  ],
)
def test_cifar_tfds_files_are_prepared(
  tmp_path, monkeypatch, name, val, test, folder
):
  spec = dataclasses.replace(
    data.SPECS[name],
    num_classes=dict.fromkeys(data.SPLITS, 1),
    images_per_class=3,
  )
  monkeypatch.setitem(data.SPECS, name, spec)
  labels = [test, 'apple', val]
  images = noise(9, 32, 32, 3)
  pairs = [(image, labels[i % 3]) for i, image in enumerate(images)]
  splits = {'train': pairs[:6], 'test': pairs[6:]}
  build_tfds(tmp_path, 'cifar100', labels, splits)
  data.prepare(name, tmp_path / folder, tmp_path)
  for split, label in (('train', 'apple'), ('val', val), ('test', test)):
    dataset = data.load_dataset(name, split, tmp_path)
    assert data.class_names(name, split, tmp_path) == [label]
    expected = images[labels.index(label) :: 3]
    assert {image.tobytes() for image in dataset.images} == {
      image.tobytes() for image in expected
    }


CIFAR_CLASSES = {
  'cifar_fs': {'train': 'apple', 'val': 'beaver', 'test': 'baby'},
  'fc100': {'train': 'apple', 'val': 'wolf', 'test': 'baby'},
}


def write_python_version(folder, images, labels):
  """Writes images and class names as CIFAR-100 is distributed."""
  for part, rows in (('train', slice(6)), ('test', slice(6, None))):
    stack = images[rows].transpose(0, 3, 1, 2)
    content = {
      b'filenames': [b'x.png'],
      b'fine_labels': [cifar.CLASSES.index(name) for name in labels[rows]],
      b'coarse_labels': [0],
      b'data': stack.reshape(len(stack), -1),
    }
    dump(folder / part, content)
  dump(folder / 'meta', {b'fine_label_names': []})


def write_cifar_class_folders(folder, images, labels):
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    path = folder / 'data' / label / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image))


@pytest.mark.parametrize('name', CIFAR_CLASSES)
@pytest.mark.parametrize(
  ('folder', 'write'),
  [
    ('cifar-100-python', write_python_version),
    ('.', write_python_version),
    ('cifar100', write_cifar_class_folders),
  ],
)
def test_images_of_cifar_100_are_split_by_class(
  tmp_path, monkeypatch, name, folder, write
):
  one_each = dict.fromkeys(data.SPLITS, 1)
  spec = dataclasses.replace(
    data.SPECS[name], num_classes=one_each, images_per_class=3
  )
  monkeypatch.setitem(data.SPECS, name, spec)
  images = noise(9, 32, 32, 3)
  classes = CIFAR_CLASSES[name]
  write(tmp_path / folder, images, [*classes.values()] * 3)
  data.prepare(name, tmp_path, tmp_path / 'prepared')
  for k, split in enumerate(data.SPLITS):
    dataset = data.load_dataset(name, split, tmp_path / 'prepared')
    np.testing.assert_array_equal(dataset.images, images[k::3])
    found = data.class_names(name, split, tmp_path / 'prepared')
    assert found == [classes[split]]


@pytest.mark.parametrize(
  'change',
  [
    {b'fine_labels': [0, 100]},
    {b'fine_labels': [0]},
    {b'fine_labels': ['a', 'b']},
    {b'data': noise(2, 32, 32, 3)},
    {b'data': noise(2, 3072).astype(np.float32)},
  ],
)
def test_invalid_files_of_cifar_100_raise_error(tmp_path, change):
  content = {b'fine_labels': [0, 1], b'data': noise(2, 3072)}
  dump(tmp_path / 'test', content)
  dump(tmp_path / 'train', content | change)
  with pytest.raises(UserError, match=r"train: expected 'data', .*3072\], and"):
    data.prepare('cifar_fs', tmp_path, tmp_path)


@pytest.mark.parametrize('name', PREPARED_FROM_FILES)
def test_class_folders_by_split_are_prepared(tmp_path, monkeypatch, name):
  spec = dataclasses.replace(
    data.SPECS[name],
    num_classes=TWO_EACH,
    images_per_class=2,
    invert=False,
    rotations=1,
  )
  monkeypatch.setitem(data.SPECS, name, spec)
  paths = [
    f'top/{folder}/{label}/{i}.png'
    for folder, labels in (
      ('Validation', ('001.Auk', '002.Emu')),
      ('test', ('003.Jay', '005.Kea')),
      ('TRAIN', ('004.Owl', '006.Tit')),
    )
    for label in labels
    for i in range(2)
  ]
  write_images(tmp_path / 'source', paths)
  data.prepare(name, tmp_path / 'source', tmp_path)
  check_classes(
    name,
    tmp_path,
    {
      'val': {'001.Auk': [0, 1], '002.Emu': [2, 3]},
      'test': {'003.Jay': [4, 5], '005.Kea': [6, 7]},
      'train': {'004.Owl': [8, 9], '006.Tit': [10, 11]},
    },
  )


def test_omniglot_characters_by_split_are_prepared(tmp_path, monkeypatch):
  spec = dataclasses.replace(
    data.SPECS['omniglot'], images_per_class=1, invert=False, rotations=1
  )
  monkeypatch.setitem(data.SPECS, 'omniglot', spec)
  characters = ['train/Greek/c1', 'train/Latin/c1', 'val/Futurama/c1']
  characters.append('test/Tibetan/c2')
  write_images(tmp_path / 'source', [f'{path}/1.png' for path in characters])
  data.prepare('omniglot', tmp_path / 'source', tmp_path)
  check_classes(
    'omniglot',
    tmp_path,
    {
      'train': {'Greek/c1': [0], 'Latin/c1': [1]},
      'val': {'Futurama/c1': [2]},
      'test': {'Tibetan/c2': [3]},
    },
  )


def test_tiered_imagenet_pickles_with_bytes_keys_are_prepared(
  tmp_path, expect_classes
):
  expect_classes('tiered_imagenet', **TWO_EACH)
  npz_and_labels(tmp_path, tiered_images())
  for split in data.SPLITS:
    content = {b'labels': TIERED_LABELS, b'label_specific_str': [b'a', b'b']}
    dump(tmp_path / f'{split}_labels.pkl', content)
  data.prepare('tiered_imagenet', tmp_path, tmp_path)
  names = data.class_names('tiered_imagenet', 'val', tmp_path)
  assert names == ['a, val class 0', 'b, val class 1']


def test_tfds_files_without_random_access_raise_error(tmp_path):
  folder = tmp_path / 'cifar100' / '3.0.2'
  build_tfds(
    tmp_path, 'cifar100', ['apple'], {'train': [(noise(2, 2, 3), 'apple')]}
  )
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(
    UserError, match='tfrecord files, which do not support random'
  ):
    data.prepare('fc100', tmp_path, tmp_path)
  (folder / 'features.json').write_text('{')
  with pytest.raises(UserError, match='fc100: cannot read .*cifar100/3.0.2'):
    data.prepare('fc100', tmp_path, tmp_path)


def test_cifar_splits_have_published_class_counts():
  assert len(cifar.CLASSES) == len(set(cifar.CLASSES)) == 100
  for module in (cifar_fs, fc100):
    assert sorted(module.SPLIT_OF) == cifar.CLASSES
    for split, number in module.SPEC.num_classes.items():
      assert list(module.SPLIT_OF.values()).count(split) == number
  for classes in cifar.SUPERCLASSES.values():
    assert len({fc100.SPLIT_OF[name] for name in classes.split()}) == 1


def test_cifar_with_missing_images_raises_error(tmp_path):
  for split in data.SPLITS:
    content = {'data': noise(64, 32, 32, 3), 'labels': list(range(64))}
    dump(tmp_path / f'CIFAR_FS_{split}.pickle', content)
  with pytest.raises(UserError, match='has 1 images, expected 600'):
    data.prepare('cifar_fs', tmp_path, tmp_path)


# User-provided folders


def write_images(folder, paths):
  """Writes a uniform gray image for each path; its level is its index."""
  for i, path in enumerate(paths):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    image = np.full((90 + i, 60, 3), i, np.uint8)
    suffix = 'jpeg' if path.endswith('.jpg') else 'png'
    (folder / path).write_bytes(encoded(image, suffix))


def test_folder_with_splits_is_prepared(tmp_path):
  source = tmp_path / 'source'
  write_images(
    source,
    [
      'train/cat/b.jpg',
      'train/cat/a.png',
      'train/ant/deep/a.png',
      'train/ant/a.png',
      'val/train/1.png',
      'test/cow/1.png',
      'readme.png',
      'train/stray.png',
    ],
  )
  data.prepare('folder', source, tmp_path)
  levels = {}
  for split in data.SPLITS:
    dataset = data.load_dataset('folder', split, tmp_path)
    assert dataset.images.shape[1:] == (84, 84, 3)
    names = data.class_names('folder', split, tmp_path)
    for name, index, size in zip(
      names, dataset.index, dataset.size, strict=True
    ):
      levels[split, name] = [*dataset.images[index[:size], 0, 0, 0]]
  assert levels == {
    ('train', 'ant'): [3, 2],
    ('train', 'cat'): [1, 0],
    ('val', 'train'): [4],
    ('test', 'cow'): [5],
  }


def test_folder_without_splits_is_split_by_class(tmp_path):
  source = tmp_path / 'source'
  labels = ['train', *(f'class {i}' for i in range(24))]
  write_images(source, [f'{label}/{i}.png' for label in labels for i in 'ab'])
  data.prepare('folder', source, tmp_path)
  names = {
    split: data.class_names('folder', split, tmp_path) for split in data.SPLITS
  }
  assert [len(names[split]) for split in data.SPLITS] == [16, 4, 5]
  assert sorted(sum(names.values(), [])) == sorted(labels)
  assert names['val'] != sorted(labels)[:4]
  sizes = data.load_dataset('folder', 'train', tmp_path).size
  np.testing.assert_array_equal(sizes, [2] * 16)


def test_classes_named_like_splits_are_a_warning(tmp_path, capsys):
  write_images(tmp_path / 'source', [f'{c}/1.png' for c in data.SPLITS])
  data.prepare('folder', tmp_path / 'source', tmp_path)
  assert capsys.readouterr().err == (
    'warning: folder: the classes are named like splits: test, train, val\n'
  )


@pytest.mark.parametrize(
  ('paths', 'message'),
  [
    (['cat/1.png', 'cow/1.png'], 'at least 3 classes .* found 2: '),
    (
      ['train/a/1.png', 'val/b/1.png', 'extra/c/1.png'],
      'found image folders other than train, val: extra',
    ),
    (
      ['train/a/1.png', 'val/b/1.png', 'valid/c/1.png'],
      "several folders for split 'val': val, valid",
    ),
    (['train/a/1.png', 'val/b/1.png'], "split 'test' has no images"),
    (['train/a/1.png', 'val/b/1.png', 'test/a/1.png'], 'in several splits'),
    (['1.png', '2.png'], 'no images of this data set'),
  ],
)
def test_folder_with_invalid_layout_raises_error(tmp_path, paths, message):
  write_images(tmp_path / 'source', paths)
  with pytest.raises(UserError, match=message):
    data.prepare('folder', tmp_path / 'source', tmp_path)


SPLIT_CLASSES = ['train/a', 'train/b', 'val/c', 'test/d']
JUNK = [
  '__MACOSX/top/x/._1.jpg',
  'top/__MACOSX/x/1.jpg',
  'top/data/@eaDir/1.jpg',
  'top/data/.trash/x/1.jpg',
  'top/data/a/._1.jpg',
  'top/data/a/Thumbs.db',
  'top/.DS_Store',
  'top/desktop.ini',
]


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('classes', [SPLIT_CLASSES, list('abcd')])
def test_wrapper_folders_and_junk_files_are_ignored(
  tmp_path, capsys, zipped, classes
):
  source = tmp_path / 'source'
  write_images(source, [f'top/data/{name}/1.jpg' for name in classes])
  for name in JUNK:
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(b'junk')
  if zipped:
    shutil.make_archive(tmp_path / 'zipped' / 'x', 'zip', source)
    source = tmp_path / 'zipped'
  data.prepare('folder', source, tmp_path)
  names = [data.class_names('folder', s, tmp_path) for s in data.SPLITS]
  assert sorted(sum(names, [])) == ['a', 'b', 'c', 'd']
  if classes == SPLIT_CLASSES:
    assert names == [['a', 'b'], ['c'], ['d']]
  assert capsys.readouterr().err == ''


def test_unreadable_images_of_folder_are_skipped_with_a_warning(
  tmp_path, capsys
):
  source = tmp_path / 'source'
  paths = [f'train/{c}/{i}.png' for c in 'ab' for i in range(3)]
  write_images(source, [*paths, 'val/c/1.png', 'test/d/1.png'])
  (source / 'train/a/0.png').write_bytes(b'')
  (source / 'train/b/1.png').write_text('<html>Not found</html>')
  content = (source / 'train/b/2.png').read_bytes()
  (source / 'train/b/2.png').write_bytes(content[:60])
  (source / 'train/b/3.png').symlink_to(source / 'nowhere')
  data.prepare('folder', source, tmp_path)
  lines = capsys.readouterr().err.splitlines()
  start = 'warning: folder: skipped image '
  assert lines[:3] == [
    f"{start}'3.png' of class 'b': No such file or directory",
    f"{start}'0.png' of class 'a': empty file",
    f"{start}'1.png' of class 'b': HTML page instead of data; download the file"
    ' again',
  ]
  assert lines[3].startswith(f"{start}'2.png' of class 'b': broken: ")
  assert len(lines) == 4
  expected = {'train': {'a': [1, 2], 'b': [3]}, 'val': {'c': [6]}}
  check_classes('folder', tmp_path, expected | {'test': {'d': [7]}})


@pytest.mark.parametrize('is_link', [True, False])
def test_class_without_readable_images_raises_error(tmp_path, is_link):
  source = tmp_path / 'source'
  write_images(source, PATHS)
  path = source / 'val/ant/1.png'
  path.unlink()
  if is_link:
    path.symlink_to(source / 'nowhere')
  else:
    path.write_text('text')
  reason = 'No such file or directory' if is_link else 'not an image'
  with pytest.raises(UserError) as caught:
    data.prepare('folder', source, tmp_path / 'prepared')
  assert str(caught.value) == (
    "folder: class 'ant' has no readable image; cannot read image '1.png' of"
    f" class 'ant': {reason}"
  )
  assert not list((tmp_path / 'prepared').rglob('*.*'))


PATHS = ['train/cat/1.png', 'val/ant/1.png', 'test/cow/1.png']


def list_tree(folder):
  return sorted(folder.rglob('*'))


def test_folder_is_prepared_on_first_use_and_not_modified(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('MAML_JAX_DATA', str(tmp_path / 'prepared'))
  source, same_name = tmp_path / 'mine', tmp_path / 'other' / 'mine'
  write_images(source, PATHS)
  write_images(same_name, [path.replace('cat', 'dog') for path in PATHS])
  before = list_tree(source)
  assert len(data.load_dataset('folder', 'test', source).size) == 1
  out = capsys.readouterr().out
  assert out.startswith(f'folder: first use of {source}: preparing its images')
  assert out.count('\n') == 1
  assert data.class_names('folder', 'train', str(source)) == ['cat']
  assert capsys.readouterr().out == ''
  assert list_tree(source) == before
  assert data.class_names('folder', 'train', same_name) == ['dog']
  one, two = data.prepared_roots('folder')
  assert one.name.startswith('mine-') and two.name.startswith('mine-')
  assert data.class_names('folder', 'train', one) in (['cat'], ['dog'])


def test_folder_prepared_by_command_line_is_loaded(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('MAML_JAX_DATA', str(tmp_path / 'prepared'))
  write_images(tmp_path / 'mine', PATHS)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.argv', ['x', 'prepare', 'folder', '--from', 'mine'])
  assert data_command() == 0
  out = capsys.readouterr().out
  assert out.startswith('folder: train 1, val 1, test 1 classes, in ')
  assert len(data.load_dataset('folder', 'train', tmp_path / 'mine').size) == 1
  assert capsys.readouterr().out == ''
  monkeypatch.setattr('sys.argv', ['x', 'list'])
  assert data_command() == 0
  assert 'folder          train 1, val 1' in capsys.readouterr().out
  write_images(tmp_path / 'mine', ['train/dog/1.png'])
  data.prepare('folder', 'mine')
  assert data.class_names('folder', 'train', 'mine') == ['cat', 'dog']


def test_missing_or_empty_folder_raises_error(tmp_path, monkeypatch):
  monkeypatch.setenv('MAML_JAX_DATA', str(tmp_path / 'prepared'))
  with pytest.raises(UserError, match='no such directory: .*nowhere'):
    data.load_dataset('folder', 'train', tmp_path / 'nowhere')
  with pytest.raises(UserError, match='no images of this data set found'):
    data.load_dataset('folder', 'train', tmp_path)
  with pytest.raises(UserError, match='or set --config.data.root=DIR'):
    data.load_dataset('folder', 'train')


# CUB-200 and iNaturalist: folders and CSV files


def write_csv_files(folder, rows_by_split, header=True):
  folder.mkdir(parents=True, exist_ok=True)
  for split, rows in rows_by_split.items():
    lines = ['filename,label'] if header else []
    lines += [','.join(row) for row in rows]
    (folder / f'{split}.csv').write_text('\n'.join([*lines, '', '']))


BIRDS = {
  'train': [('001.Auk/b.jpg', '0'), ('001.Auk/a.jpg', '0')],
  'val': [('002.Emu/a.jpg', '1'), ('003.Jay/a.jpg', '2')],
  'test': [('004.Owl/a.jpg', '3')],
}
BIRD_FILES = [
  '001.Auk/a.jpg',
  '001.Auk/b.jpg',
  '002.Emu/a.jpg',
  '003.Jay/a.jpg',
  '004.Owl/a.jpg',
]


def check_classes(name, data_dir, expected):
  """Checks the prepared data against {split: {class: levels of its images}}."""
  for split, classes in expected.items():
    dataset = data.load_dataset(name, split, data_dir)
    names = data.class_names(name, split, data_dir)
    levels = [
      [int(level) for level in dataset.images[index[:size], 0, 0, 0]]
      for index, size in zip(dataset.index, dataset.size, strict=True)
    ]
    assert dict(zip(names, levels, strict=True)) == classes


@pytest.mark.parametrize('folder', ['fs-splits', '.'])
@pytest.mark.parametrize('top', ['images', 'CUB_200_2011/images'])
@pytest.mark.parametrize('header', [True, False])
def test_cub_with_csv_files_is_prepared(
  tmp_path, expect_classes, folder, top, header
):
  expect_classes('cub', train=1, val=2, test=1)
  source = tmp_path / 'source'
  write_images(source / top, BIRD_FILES)
  write_csv_files(source / folder, BIRDS, header)
  data.prepare('cub', source, tmp_path)
  check_classes(
    'cub',
    tmp_path,
    {
      'train': {'001.Auk': [0, 1]},
      'val': {'002.Emu': [2], '003.Jay': [3]},
      'test': {'004.Owl': [4]},
    },
  )


def test_cub_without_csv_files_is_split_by_class_number(
  tmp_path, expect_classes
):
  expect_classes('cub', train=2, val=1, test=1)
  source = tmp_path / 'source'
  write_images(source / 'CUB_200_2011' / 'images', BIRD_FILES)
  write_images(source / 'segmentations', BIRD_FILES)
  data.prepare('cub', source, tmp_path)
  check_classes(
    'cub',
    tmp_path,
    {
      'train': {'001.Auk': [0, 1], '003.Jay': [3]},
      'val': {'002.Emu': [2]},
      'test': {'004.Owl': [4]},
    },
  )


def test_cub_tfds_files_are_prepared(tmp_path, expect_classes):
  expect_classes('cub', train=2, val=1, test=1)
  images = [np.full((50 + i, 40, 3), i, np.uint8) for i in range(4)]
  pairs = list(zip(images, (3, 2, 1, 0), strict=True))
  build_tfds(
    tmp_path, 'caltech_birds2011', 4, {'train': pairs[:2], 'test': pairs[2:]}
  )
  data.prepare('cub', tmp_path, tmp_path)
  check_classes(
    'cub',
    tmp_path,
    {
      'train': {'001': [3], '003': [1]},
      'val': {'002': [2]},
      'test': {'004': [0]},
    },
  )


def test_cub_with_missing_classes_raises_error(tmp_path):
  write_images(tmp_path / 'images', BIRD_FILES)
  with pytest.raises(UserError, match="'train' has 2 classes, expected 100"):
    data.prepare('cub', tmp_path, tmp_path / 'prepared')


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (
      [('001.Auk/c.jpg', '0')],
      'train.csv lists 001.Auk/c.jpg, which matches none',
    ),
    ([('a.jpg', '0')], 'train.csv lists a.jpg, which matches 4 '),
    (
      [('001.Auk/a.jpg',)],
      'train.csv, line .: expected a filename and a label',
    ),
    ([('001.Auk/a.jpg', '0'), ('004.Owl/a.jpg', '1')], 'in several splits'),
  ],
)
def test_invalid_csv_files_raise_error(tmp_path, expect_classes, rows, message):
  expect_classes('cub', train=2, val=2, test=1)
  write_images(tmp_path / 'images', BIRD_FILES)
  write_csv_files(tmp_path / 'fs-splits', BIRDS | {'train': rows})
  with pytest.raises(UserError, match=message):
    data.prepare('cub', tmp_path, tmp_path / 'prepared')


def test_cub_with_some_csv_files_missing_raises_error(tmp_path):
  write_images(tmp_path / 'images', BIRD_FILES)
  write_csv_files(tmp_path, {'train': BIRDS['train'], 'test': BIRDS['test']})
  with pytest.raises(UserError, match='train.csv, test.csv but not val.csv'):
    data.prepare('cub', tmp_path, tmp_path / 'prepared')


INAT_ROWS = {
  split: [(f'{split} {c}/{i}.jpg', str(c)) for c in range(5) for i in 'ab']
  for split in data.SPLITS
}
INAT_FILES = [path for rows in INAT_ROWS.values() for path, _ in rows]


@pytest.mark.parametrize(
  ('top', 'folder'),
  [
    ('images/Aves', 'fs-splits'),
    ('train_val_images/Aves', '.'),
  ],
)
def test_inat2017_is_prepared(tmp_path, top, folder):
  source = tmp_path / 'source'
  write_images(source / top, INAT_FILES)
  write_csv_files(source / folder, INAT_ROWS, header=False)
  data.prepare('inat2017', source, tmp_path)
  check_classes(
    'inat2017',
    tmp_path,
    {
      split: {
        f'{split} {c}': [10 * k + 2 * c, 10 * k + 2 * c + 1] for c in range(5)
      }
      for k, split in enumerate(data.SPLITS)
    },
  )


def test_inat2017_without_val_csv_holds_out_training_classes(tmp_path):
  source = tmp_path / 'source'
  write_images(source / 'images', INAT_FILES)
  rows_by_split = {split: INAT_ROWS[split] for split in ('train', 'test')}
  write_csv_files(source / 'fs-splits', rows_by_split, header=False)
  data.prepare('inat2017', source, tmp_path)
  names = {
    split: data.class_names('inat2017', split, tmp_path)
    for split in data.SPLITS
  }
  assert [len(names[split]) for split in data.SPLITS] == [4, 1, 5]
  assert sorted(names['train'] + names['val']) == [
    f'train {c}' for c in range(5)
  ]


@pytest.mark.parametrize(
  ('folder', 'labels', 'names'),
  [
    ('flat', ('0', '1'), ['{} class 0', '{} class 1']),
    ('flat', ('{} Auk', '{} Emu'), ['{} Auk', '{} Emu']),
  ],
)
def test_csv_classes_are_named_without_class_folders(
  tmp_path, folder, labels, names
):
  source = tmp_path / 'source'
  rows = {
    split: [
      (f'{split}{i}.jpg', label.format(split)) for i, label in enumerate(labels)
    ]
    for split in data.SPLITS
  }
  files = [path for split in rows.values() for path, _ in split]
  write_images(source / 'images' / folder, files)
  write_csv_files(source, rows)
  data.prepare('inat2017', source, tmp_path)
  for split in data.SPLITS:
    found = data.class_names('inat2017', split, tmp_path)
    assert found == [name.format(split) for name in names]
