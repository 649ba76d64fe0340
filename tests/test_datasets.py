"""Further data sets: small files in the layouts that people have."""

import dataclasses
import functools
import io
import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from maml_jax import data
from maml_jax.data import npz, records, safe_pickle, store
from maml_jax.data.__main__ import main as data_command
from maml_jax.data.datasets import cifar, cifar_fs, fc100
from maml_jax.utils.errors import UserError

MADE_FROM_FILES = sorted(
  name for name, spec in data.SPECS.items() if not spec.generated
)
TWO_EACH = dict.fromkeys(data.SPLITS, 2)


@pytest.fixture
def fewer(monkeypatch):
  """Sets the numbers of classes that a data set should have."""

  def change(name, **num_classes):
    spec = dataclasses.replace(data.SPECS[name], num_classes=num_classes)
    monkeypatch.setitem(data.SPECS, name, spec)

  return change


def encoded(image, suffix='png'):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, suffix)
  return buffer.getvalue()


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def dump(path, content, protocol=2):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize('name', MADE_FROM_FILES)
def test_missing_data_are_told_how_to_get(tmp_path, name):
  with pytest.raises(UserError) as caught:
    data.load_dataset(name, 'train', tmp_path)
  message = str(caught.value)
  assert f'maml_jax.data prepare {name} --from DIR' in message
  for line in data.spec(name).layout.splitlines():
    assert line in message
  for given in (None, tmp_path / 'nowhere', tmp_path):
    with pytest.raises(UserError) as caught:
      data.prepare(name, given, tmp_path / 'prepared')
    assert 'where DIR holds one of' in str(caught.value)
  assert not (tmp_path / 'prepared').exists()


@pytest.mark.parametrize('name', MADE_FROM_FILES)
def test_statistics_are_those_of_the_channels(name):
  spec = data.spec(name)
  for values in (spec.mean, spec.std):
    assert values is None or len(values) == spec.image_shape[-1]
    assert values is None or all(0 < value < 1 for value in values)


def test_a_split_without_images_is_refused():
  spec = records.DatasetSpec('toy', (2, 2, 1), '', lambda _: {})
  record = records.Record('a', '0', bytes)
  with pytest.raises(UserError, match="split 'val' has no images"):
    records.verify_counts(spec, {'train': [record], 'val': [], 'test': []})


# Preparing what is larger than memory


def test_images_are_prepared_one_by_one_into_several_files(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(store, 'IMAGES_PER_FILE', 30)
  spec = records.DatasetSpec('toy', (4, 4, 3), '', lambda _: {})
  images = [np.full((4, 4, 3), i, np.uint8) for i in range(100)]

  def read(i):
    return encoded(images[i]) + bytes(500_000)  # which PNG readers ignore

  splits = {
    split: [
      records.Record(f'{split} {i // 50}', f'{i}', functools.partial(read, i))
      for i in range(size)
    ]
    for split, size in (('train', 100), ('val', 1), ('test', 1))
  }
  store.write_dataset(
    tmp_path / 'warm', spec, splits | {'train': splits['val']}
  )
  tracemalloc.start()
  store.write_dataset(tmp_path / 'toy', spec, splits)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 10e6  # of 50e6
  assert len(list((tmp_path / 'toy').glob('*train.array_record*'))) == 4
  dataset = store.read_arrays(tmp_path / 'toy', spec, 'train')
  np.testing.assert_array_equal(dataset.images, images)
  np.testing.assert_array_equal(dataset.size, [50, 50])


# Rows of .npz files, bytes in pickles


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_rows_of_npz_are_read_in_any_order(tmp_path, save):
  array = noise(5, 4, 3)
  save(tmp_path / 'a.npz', first=np.ones(3), second=array)
  rows = npz.Rows(tmp_path / 'a.npz', 'second')
  assert (len(rows), rows.shape, rows.dtype) == (5, (5, 4, 3), np.uint8)
  for i in (0, 1, 4, 2, 2, 0):
    np.testing.assert_array_equal(rows[i], array[i])


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_rows_of_npz_take_no_memory_for_the_others(tmp_path, save):
  save(tmp_path / 'a.npz', images=np.zeros((4000, 84, 84), np.uint8))  # 28 MB
  tracemalloc.start()
  rows = npz.Rows(tmp_path / 'a.npz', 'images')
  assert sum(int(rows[i].max()) for i in range(0, 4000, 40)) == 0
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
def test_npz_of_anything_else_are_refused(tmp_path, array):
  np.savez(tmp_path / 'a.npz', images=array)
  with pytest.raises(UserError, match=r"'images' of .*a.npz: .*plain array"):
    npz.Rows(tmp_path / 'a.npz', 'images')
  with pytest.raises(UserError, match=r"cannot read 'other' of .*a.npz"):
    npz.Rows(tmp_path / 'a.npz', 'other')


def pickle_of_python_2(blobs):
  """A list of strings as Python 2 writes it: bytes of a known length."""
  parts = (
    b'U' + bytes([len(blob)]) + blob
    if len(blob) < 256
    else b'T' + len(blob).to_bytes(4, 'little') + blob
    for blob in blobs
  )
  return b'\x80\x02](' + b''.join(parts) + b'e.'


@pytest.mark.parametrize('protocol', [*range(2, 6), 'Python 2'])
@pytest.mark.parametrize('as_arrays', [True, False])
def test_blobs_are_found_in_pickles(tmp_path, protocol, as_arrays):
  sizes = (7, 200, 300, 70_000)
  blobs = [b'\x89PNG' + noise(n, seed=n).tobytes() for n in sizes]
  path = tmp_path / 'a.pkl'
  if protocol == 'Python 2':
    path.write_bytes(pickle_of_python_2(blobs))
  else:
    arrays = [np.frombuffer(blob, np.uint8)[:, None] for blob in blobs]
    dump(path, [b'other', *(arrays if as_arrays else blobs)], protocol)
  found = safe_pickle.find_byte_ranges(path, b'\x89PNG')
  assert [blob.read() for blob in found] == blobs


def test_blobs_of_broken_pickles_are_refused(tmp_path):
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps([b'\x89PNG' * 99])[:-20])
  with pytest.raises(UserError, match='cannot read the pickle .*a.pkl'):
    safe_pickle.find_byte_ranges(path, b'\x89PNG')


# tiered-ImageNet


TIERED_LABELS = [0, 0, 1, 1, 1]


def tiered_images():
  """RGB [5, 84, 84, 3] by split, two classes each."""
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
def test_tiered_imagenet(tmp_path, fewer, layout):
  fewer('tiered_imagenet', **TWO_EACH)
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


def test_tiered_imagenet_counts_its_classes(tmp_path):
  npz_and_labels(tmp_path, tiered_images())
  with pytest.raises(UserError, match="'train' has 2 classes, expected 351"):
    data.prepare('tiered_imagenet', tmp_path, tmp_path)


@pytest.mark.parametrize(
  ('file', 'content', 'complaint'),
  [
    ('val_labels.pkl', {'labels': [0, 1]}, 'holds 5 images, but .* 2 labels'),
    ('val_labels.pkl', {'labels': ['a'] * 5}, 'integers as labels'),
    ('val_labels.pkl', [1, 2, 3, 4, 5], 'integers as labels'),
    ('val_labels.pkl', {'labels': print}, 'refused: .*val_labels.pkl asks for'),
    ('val_images.npz', noise(5, 32, 32, 3), r'expected uint8\[N, 84, 84, 3\]'),
  ],
)
def test_tiered_imagenet_in_disorder(tmp_path, file, content, complaint):
  npz_and_labels(tmp_path, tiered_images())
  if file.endswith('.npz'):
    np.savez(tmp_path / file, images=content)
  else:
    dump(tmp_path / file, content)
  with pytest.raises(UserError, match=complaint):
    data.prepare('tiered_imagenet', tmp_path, tmp_path)


# CIFAR-FS and FC100


CIFAR = [('cifar_fs', 'CIFAR_FS_'), ('fc100', 'FC100_')]


def build_tfds(data_dir, tfds_name, labels, splits):
  """Writes {split: [(image, label), ...]} as TFDS does.

  Args:
    data_dir: where.
    tfds_name: the data set.
    labels: names of the classes, or their number if they have none.
    splits: the images.
  """
  import tensorflow_datasets as tfds

  kinds = {'num_classes' if isinstance(labels, int) else 'names': labels}

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
            'label': tfds.features.ClassLabel(**kinds),
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
def test_cifar_pickles(tmp_path, monkeypatch, name, prefix, prefixed):
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


@pytest.mark.parametrize('place', ['.', 'cifar100', 'cifar100/3.0.2'])
@pytest.mark.parametrize(
  ('name', 'val', 'test'),
  [
    ('cifar_fs', 'beaver', 'baby'),
    ('fc100', 'wolf', 'baby'),
  ],
)
def test_cifar_of_tfds(tmp_path, monkeypatch, name, val, test, place):
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
  data.prepare(name, tmp_path / place, tmp_path)
  for split, label in (('train', 'apple'), ('val', val), ('test', test)):
    dataset = data.load_dataset(name, split, tmp_path)
    assert data.class_names(name, split, tmp_path) == [label]
    expected = images[labels.index(label) :: 3]
    assert {image.tobytes() for image in dataset.images} == {
      image.tobytes() for image in expected
    }


def test_tfds_files_without_random_access_are_refused(tmp_path):
  folder = tmp_path / 'cifar100' / '3.0.2'
  build_tfds(
    tmp_path, 'cifar100', ['apple'], {'train': [(noise(2, 2, 3), 'apple')]}
  )
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(UserError, match='tfrecord files, which have no random'):
    data.prepare('fc100', tmp_path, tmp_path)
  (folder / 'features.json').write_text('{')
  with pytest.raises(UserError, match='fc100: cannot read .*cifar100/3.0.2'):
    data.prepare('fc100', tmp_path, tmp_path)


def test_cifar_classes_are_split_as_published():
  assert len(cifar.CLASSES) == len(set(cifar.CLASSES)) == 100
  for module in (cifar_fs, fc100):
    assert sorted(module.SPLIT_OF) == cifar.CLASSES
    for split, number in module.SPEC.num_classes.items():
      assert list(module.SPLIT_OF.values()).count(split) == number
  for classes in cifar.SUPERCLASSES.values():
    assert len({fc100.SPLIT_OF[name] for name in classes.split()}) == 1


def test_cifar_counts_its_images(tmp_path):
  for split in data.SPLITS:
    content = {'data': noise(64, 32, 32, 3), 'labels': list(range(64))}
    dump(tmp_path / f'CIFAR_FS_{split}.pickle', content)
  with pytest.raises(UserError, match='has 1 images, expected 600'):
    data.prepare('cifar_fs', tmp_path, tmp_path)


# A folder of one's own


def write_images(folder, paths):
  """Writes a flat grey image for each path; its level is its turn."""
  for i, path in enumerate(paths):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    image = np.full((90 + i, 60, 3), i, np.uint8)
    suffix = 'jpeg' if path.endswith('.jpg') else 'png'
    (folder / path).write_bytes(encoded(image, suffix))


def test_folder_with_splits(tmp_path):
  given = tmp_path / 'given'
  write_images(
    given,
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
  data.prepare('folder', given, tmp_path)
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


def test_folder_without_splits_is_dealt_out(tmp_path):
  given = tmp_path / 'given'
  labels = ['train', *(f'class {i}' for i in range(24))]
  write_images(given, [f'{label}/{i}.png' for label in labels for i in 'ab'])
  data.prepare('folder', given, tmp_path)
  names = {
    split: data.class_names('folder', split, tmp_path) for split in data.SPLITS
  }
  assert [len(names[split]) for split in data.SPLITS] == [16, 4, 5]
  assert sorted(sum(names.values(), [])) == sorted(labels)
  assert names['val'] != sorted(labels)[:4]
  sizes = data.load_dataset('folder', 'train', tmp_path).size
  np.testing.assert_array_equal(sizes, [2] * 16)


@pytest.mark.parametrize(
  ('paths', 'complaint'),
  [
    (['cat/1.png', 'cow/1.png'], '2 classes cannot make three splits'),
    (['train/a/1.png', 'valid/b/1.png'], 'beside train, val, test: valid'),
    (['train/a/1.png', 'val/b/1.png'], "split 'test' has no images"),
    (['train/a/1.png', 'val/b/1.png', 'test/a/1.png'], 'in several splits'),
    (['1.png', '2.png'], 'found none of its images'),
  ],
)
def test_folder_in_disorder(tmp_path, paths, complaint):
  write_images(tmp_path / 'given', paths)
  with pytest.raises(UserError, match=complaint):
    data.prepare('folder', tmp_path / 'given', tmp_path)


PATHS = ['train/cat/1.png', 'val/ant/1.png', 'test/cow/1.png']


def listing(folder):
  return sorted(folder.rglob('*'))


def test_folder_is_prepared_on_first_use_and_left_as_it_is(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('MAML_JAX_DATA', str(tmp_path / 'kept'))
  given, same_name = tmp_path / 'mine', tmp_path / 'other' / 'mine'
  write_images(given, PATHS)
  write_images(same_name, [path.replace('cat', 'dog') for path in PATHS])
  before = listing(given)
  assert len(data.load_dataset('folder', 'test', given).size) == 1
  said = capsys.readouterr().out
  assert said.startswith(f'folder: preparing the images of {given}, once, in ')
  assert said.count('\n') == 1
  assert data.class_names('folder', 'train', str(given)) == ['cat']
  assert capsys.readouterr().out == ''
  assert listing(given) == before
  assert data.class_names('folder', 'train', same_name) == ['dog']
  one, two = data.prepared_dirs('folder')
  assert one.name.startswith('mine-') and two.name.startswith('mine-')
  assert data.class_names('folder', 'train', one) in (['cat'], ['dog'])


def test_folder_that_is_prepared_beforehand_is_found(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('MAML_JAX_DATA', str(tmp_path / 'kept'))
  write_images(tmp_path / 'mine', PATHS)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.argv', ['x', 'prepare', 'folder', '--from', 'mine'])
  assert data_command() == 0
  said = capsys.readouterr().out
  assert said.startswith('folder: train 1, val 1, test 1 classes, in ')
  assert len(data.load_dataset('folder', 'train', tmp_path / 'mine').size) == 1
  assert capsys.readouterr().out == ''
  monkeypatch.setattr('sys.argv', ['x', 'list'])
  assert data_command() == 0
  assert 'folder          train 1, val 1' in capsys.readouterr().out
  write_images(tmp_path / 'mine', ['train/dog/1.png'])
  data.prepare('folder', 'mine')
  assert data.class_names('folder', 'train', 'mine') == ['cat', 'dog']


def test_folder_that_is_not_there_or_empty(tmp_path, monkeypatch):
  monkeypatch.setenv('MAML_JAX_DATA', str(tmp_path / 'kept'))
  with pytest.raises(UserError, match='no such directory: .*nowhere'):
    data.load_dataset('folder', 'train', tmp_path / 'nowhere')
  with pytest.raises(UserError, match='found none of its images'):
    data.load_dataset('folder', 'train', tmp_path)
  with pytest.raises(UserError, match='or name DIR by --config.data.root=DIR'):
    data.load_dataset('folder', 'train')


# CUB-200 and iNaturalist: folders and tables


def write_tables(folder, tables, heading=True):
  folder.mkdir(parents=True, exist_ok=True)
  for split, rows in tables.items():
    lines = ['filename,label'] if heading else []
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
  """Compares {split: {class: levels of its images}} with the prepared data."""
  for split, classes in expected.items():
    dataset = data.load_dataset(name, split, data_dir)
    names = data.class_names(name, split, data_dir)
    levels = [
      [int(level) for level in dataset.images[index[:size], 0, 0, 0]]
      for index, size in zip(dataset.index, dataset.size, strict=True)
    ]
    assert dict(zip(names, levels, strict=True)) == classes


@pytest.mark.parametrize('place', ['fs-splits', '.'])
@pytest.mark.parametrize('top', ['images', 'CUB_200_2011/images'])
@pytest.mark.parametrize('heading', [True, False])
def test_cub_with_tables(tmp_path, fewer, place, top, heading):
  fewer('cub', train=1, val=2, test=1)
  given = tmp_path / 'given'
  write_images(given / top, BIRD_FILES)
  write_tables(given / place, BIRDS, heading)
  data.prepare('cub', given, tmp_path)
  check_classes(
    'cub',
    tmp_path,
    {
      'train': {'001.Auk': [0, 1]},
      'val': {'002.Emu': [2], '003.Jay': [3]},
      'test': {'004.Owl': [4]},
    },
  )


def test_cub_without_tables_is_split_by_number(tmp_path, fewer):
  fewer('cub', train=2, val=1, test=1)
  given = tmp_path / 'given'
  write_images(given / 'CUB_200_2011' / 'images', BIRD_FILES)
  write_images(given / 'segmentations', BIRD_FILES)
  data.prepare('cub', given, tmp_path)
  check_classes(
    'cub',
    tmp_path,
    {
      'train': {'001.Auk': [0, 1], '003.Jay': [3]},
      'val': {'002.Emu': [2]},
      'test': {'004.Owl': [4]},
    },
  )


def test_cub_of_tfds(tmp_path, fewer):
  fewer('cub', train=2, val=1, test=1)
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


def test_cub_counts_its_classes(tmp_path):
  write_images(tmp_path / 'images', BIRD_FILES)
  with pytest.raises(UserError, match="'train' has 2 classes, expected 100"):
    data.prepare('cub', tmp_path, tmp_path / 'prepared')


@pytest.mark.parametrize(
  ('rows', 'complaint'),
  [
    ([('001.Auk/c.jpg', '0')], 'train.csv lists 001.Auk/c.jpg, which is none'),
    ([('a.jpg', '0')], 'train.csv lists a.jpg, which is several'),
    ([('001.Auk/a.jpg',)], 'train.csv lacks filename or label'),
    ([('001.Auk/a.jpg', '0'), ('004.Owl/a.jpg', '1')], 'in several splits'),
  ],
)
def test_tables_in_disorder(tmp_path, fewer, rows, complaint):
  fewer('cub', train=2, val=2, test=1)
  write_images(tmp_path / 'images', BIRD_FILES)
  write_tables(tmp_path / 'fs-splits', BIRDS | {'train': rows})
  with pytest.raises(UserError, match=complaint):
    data.prepare('cub', tmp_path, tmp_path / 'prepared')


def test_cub_needs_all_tables_or_none(tmp_path):
  write_images(tmp_path / 'images', BIRD_FILES)
  write_tables(tmp_path, {'train': BIRDS['train'], 'test': BIRDS['test']})
  with pytest.raises(UserError, match=r'lacks val beside train, test \(.csv\)'):
    data.prepare('cub', tmp_path, tmp_path / 'prepared')


INAT_ROWS = {
  split: [(f'{split} {c}/{i}.jpg', str(c)) for c in range(5) for i in 'ab']
  for split in data.SPLITS
}
INAT_FILES = [path for rows in INAT_ROWS.values() for path, _ in rows]


@pytest.mark.parametrize(
  ('top', 'place'),
  [
    ('images/Aves', 'fs-splits'),
    ('train_val_images/Aves', '.'),
  ],
)
def test_inat2017(tmp_path, top, place):
  given = tmp_path / 'given'
  write_images(given / top, INAT_FILES)
  write_tables(given / place, INAT_ROWS, heading=False)
  data.prepare('inat2017', given, tmp_path)
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


def test_inat2017_holds_classes_out_to_validate(tmp_path):
  given = tmp_path / 'given'
  write_images(given / 'images', INAT_FILES)
  tables = {split: INAT_ROWS[split] for split in ('train', 'test')}
  write_tables(given / 'fs-splits', tables, heading=False)
  data.prepare('inat2017', given, tmp_path)
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
def test_classes_of_tables_need_no_folders(tmp_path, folder, labels, names):
  given = tmp_path / 'given'
  rows = {
    split: [
      (f'{split}{i}.jpg', label.format(split)) for i, label in enumerate(labels)
    ]
    for split in data.SPLITS
  }
  files = [path for split in rows.values() for path, _ in split]
  write_images(given / 'images' / folder, files)
  write_tables(given, rows)
  data.prepare('inat2017', given, tmp_path)
  for split in data.SPLITS:
    found = data.class_names('inat2017', split, tmp_path)
    assert found == [name.format(split) for name in names]
