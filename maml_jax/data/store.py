"""Prepared data sets on disk: TFDS files, and arrays decoded from them.

    data_dir/NAME/VERSION/                   array_record files of TFDS
    data_dir/NAME/VERSION/arrays/SPLIT/      image.npy, classes.json

The TFDS files keep the images as they came; they are written once. The arrays
are what a run memory-maps: it needs neither TFDS nor an image decoder. Both
appear under their names only when complete.
"""

import contextlib
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maml_jax.data import source
from maml_jax.errors import UserError
from maml_jax.types import Dataset


def write(root: Path, spec: source.Spec, splits: source.Splits) -> None:
  """Prepares the TFDS files and the arrays under `root`, replacing others."""
  with _staged(root) as stage:
    _write_records(stage, spec, splits)
    for split in source.SPLITS:
      write_arrays(stage, spec, split)


def is_written(root: Path) -> bool:
  return (root / 'dataset_info.json').exists()


def read_arrays(root: Path, spec: source.Spec, split: str) -> Dataset | None:
  """Memory-maps one split; None if its arrays are missing or damaged."""
  folder = _arrays(root, split)
  try:
    image = np.load(folder / 'image.npy', mmap_mode='r')
    size = np.array(list(read_classes(root, split).values()), np.int32)
  except (OSError, ValueError, AttributeError):
    return None
  expected = (size.sum(), *spec.image_shape)
  if image.shape != expected or image.dtype != np.uint8:
    return None
  # Images are in order of class. Padding repeats the last image.
  column = np.arange(size.max())
  index = (size.cumsum() - size)[:, None] + np.minimum(column, size[:, None] - 1)
  return Dataset(image, index.astype(np.int32), size)


def read_classes(root: Path, split: str) -> dict[str, int]:
  """Number of images by class name, in the order of the classes."""
  return json.loads((_arrays(root, split) / 'classes.json').read_text('utf-8'))


def write_arrays(root: Path, spec: source.Spec, split: str) -> None:
  """Decodes one split of the TFDS files under `root` into arrays."""
  import tensorflow_datasets as tfds
  from tqdm import tqdm

  builder = tfds.builder_from_directory(root)
  records = builder.as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  name = builder.info.features['label'].int2str
  height, width, channels = spec.image_shape
  shape = (spec.rotations, len(records), height, width, channels)
  classes: dict[str, int] = {}
  with _staged(_arrays(root, split)) as stage:
    image = np.lib.format.open_memmap(
      stage / 'image.npy', 'w+', np.uint8, (len(records) * spec.rotations, *spec.image_shape)
    )
    turned = image.reshape(shape)
    bar = tqdm(
      records, f'decode {split}', unit=' images', disable=None, leave=False
    )
    for i, record in enumerate(bar):
      label = name(record['label'])
      classes[label] = classes.get(label, 0) + 1
      pixels = decode(record['image'], spec)
      for k in range(spec.rotations):
        turned[k, i] = np.rot90(pixels, k)
    image.flush()
    names = {
      f'{label} {90 * k} degrees' if k else label: size
      for k in range(spec.rotations)
      for label, size in classes.items()
    }
    (stage / 'classes.json').write_text(json.dumps(names, indent=0), 'utf-8')


def decode(encoded: bytes, spec: source.Spec) -> np.ndarray:
  """Decodes an image to uint8 [H, W, C], resized if it is of another size."""
  from PIL import Image

  height, width, channels = spec.image_shape
  with Image.open(io.BytesIO(encoded)) as image:
    image = image.convert('L' if channels == 1 else 'RGB')
    if image.size != (width, height):
      image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(spec.image_shape)
  return 255 - pixels if spec.invert else pixels


def _write_records(
  root: Path, spec: source.Spec, splits: source.Splits
) -> None:
  import tensorflow_datasets as tfds
  from tqdm import tqdm

  labels = list(
    dict.fromkeys(record.label for split in splits.values() for record in split)
  )

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes encoded images; so neither end needs TensorFlow."""

    name = spec.name
    VERSION = tfds.core.Version(spec.version)
    pkg_dir_path = Path(__file__).parent
    code_path = None  # Its search needs a package that TFDS does not install.

    def _info(self):
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(None, None, None)),
          'label': tfds.features.ClassLabel(names=labels),
          'key': tfds.features.Text(),
        }),
        supervised_keys=('image', 'label'),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {
        split: self._generate_examples(split, splits[split])
        for split in source.SPLITS
      }

    def _generate_examples(self, split, records):
      bar = tqdm(
        records, f'read {split}', unit=' images', disable=None, leave=False
      )
      for i, record in enumerate(bar):
        yield i, {
          'image': record.read(), 'label': record.label, 'key': record.key
        }

  with tempfile.TemporaryDirectory(dir=root) as data_dir:
    builder = Builder(data_dir=data_dir, file_format='array_record')
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):
      builder.download_and_prepare()
    for file in builder.data_path.iterdir():
      os.rename(file, root / file.name)


def _arrays(root: Path, split: str) -> Path:
  return root / 'arrays' / split


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
  """Yields a new directory that takes the place of `target` on success."""
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{target.name}-', dir=target.parent
  ) as temporary:
    stage = Path(temporary, 'new')
    stage.mkdir()
    yield stage
    if target.exists():
      os.rename(target, Path(temporary, 'old'))
    os.rename(stage, target)
