"""The embedded data set: fair classes, unseen scripts, the same every time."""

import dataclasses
import io
import unicodedata

import numpy as np
import pytest
from PIL import Image

from maml_jax import data
from maml_jax.data.datasets import glyphs


@pytest.fixture(scope='module')
def splits():
  return data.spec('glyphs').source(None)


@pytest.fixture(scope='module')
def chars(splits):
  """The characters of each split, in the order of its classes."""
  return {
    split: list(dict.fromkeys(record.label[0] for record in records))
    for split, records in splits.items()
  }


def scripts(chars):
  """First words of the names of letters: their scripts, in effect."""
  return {
    unicodedata.name(char).split()[0]
    for char in chars
    if unicodedata.category(char)[0] == 'L'
  }


def plain(char, face):
  return np.asarray(glyphs._draw(char, face), np.float32)


def test_splits_share_no_script(chars):
  assert scripts(chars['val']) == {'GREEK', 'LAO'}
  assert scripts(chars['test']) == {'GEORGIAN', 'ARMENIAN'}
  assert {'LATIN', 'CYRILLIC'} <= scripts(chars['train'])
  held_out = scripts(chars['val']) | scripts(chars['test'])
  for char in chars['train']:
    assert unicodedata.name(char).split()[0] not in held_out


def test_there_are_enough_classes(chars):
  assert len(chars['train']) >= 400
  assert len(chars['val']) >= 40
  assert len(chars['test']) >= 100


@pytest.mark.parametrize(
  'lookalikes', ['AΑА', 'oOоОοΟ', 'cCсС', 'xXхХ', 'BВв', 'uս', 'nո']
)
def test_lookalikes_are_one_class_at_most(chars, lookalikes):
  every = sum(chars.values(), [])
  assert sum(every.count(char) for char in lookalikes) <= 1


def test_no_letter_is_another_with_a_mark(chars):
  for char in sum(chars.values(), []):
    assert not unicodedata.decomposition(char)
    assert ' WITH ' not in unicodedata.name(char)


def test_no_two_classes_look_alike_in_any_face(chars):
  every = sum(chars.values(), [])
  for face in glyphs._faces():
    owned = [char for char in every if ord(char) in glyphs._cmap(face)]
    shape = np.stack([plain(char, face).ravel() for char in owned])
    shape /= np.linalg.norm(shape, axis=1, keepdims=True)
    similarity = shape @ shape.T - np.eye(len(owned))
    assert similarity.max() < 0.98


def test_images_are_light_ink_on_dark_that_stays_inside(splits):
  for records in splits.values():
    for record in records[:: glyphs.IMAGES_PER_CLASS * 10 + 1]:
      image = np.asarray(Image.open(io.BytesIO(record.read())))
      assert image.shape == (28, 28) and image.dtype == np.uint8
      assert image.max() > 128
      edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
      assert edge.max() == 0


def test_images_are_the_same_every_time(splits):
  again = data.spec('glyphs').source(None)
  for split, records in splits.items():
    assert [r[:2] for r in records] == [r[:2] for r in again[split]]
    for record, other in zip(records[::997], again[split][::997], strict=True):
      assert record.read() == other.read()


def test_images_of_a_class_differ(splits):
  images = {record.read() for record in splits['test'][:20]}
  assert len(images) == glyphs.IMAGES_PER_CLASS


def test_they_are_made_on_first_use(tmp_path, monkeypatch, splits):
  few = {split: records[:100] for split, records in splits.items()}
  spec = dataclasses.replace(glyphs.SPEC, source=lambda _: few)
  monkeypatch.setitem(data.SPECS, 'glyphs', spec)
  test = data.load_dataset('glyphs', 'test', tmp_path)
  assert test.images.shape == (100, 28, 28, 1)
  assert isinstance(test.images, np.memmap)
  np.testing.assert_array_equal(test.size, [20] * 5)
  names = data.class_names('glyphs', 'test', tmp_path)
  assert [unicodedata.name(name[0]) for name in names] == [
    name[2:] for name in names
  ]
