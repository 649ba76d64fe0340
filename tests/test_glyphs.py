"""The generated data set: distinct classes, disjoint scripts, deterministic."""

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
  return data.spec('glyphs').find_records(None)


@pytest.fixture(scope='module')
def chars(splits):
  """The characters of each split, in class order."""
  return {
    split: list(dict.fromkeys(record.label[0] for record in records))
    for split, records in splits.items()
  }


def scripts(chars):
  """Returns the first words of the Unicode names of letters: their scripts."""
  return {
    unicodedata.name(char).split()[0]
    for char in chars
    if unicodedata.category(char)[0] == 'L'
  }


def unwarped(char, font):
  return np.asarray(glyphs.draw_character(char, font), np.float32)


def test_splits_share_no_script(chars):
  assert scripts(chars['val']) == {'GREEK', 'LAO'}
  assert scripts(chars['test']) == {'GEORGIAN', 'ARMENIAN'}
  assert {'LATIN', 'CYRILLIC'} <= scripts(chars['train'])
  held_out = scripts(chars['val']) | scripts(chars['test'])
  for char in chars['train']:
    assert unicodedata.name(char).split()[0] not in held_out


def test_every_split_has_enough_classes(chars):
  assert len(chars['train']) >= 400
  assert len(chars['val']) >= 40
  assert len(chars['test']) >= 100


@pytest.mark.parametrize(
  'lookalikes', ['AΑА', 'oOоОοΟ', 'cCсС', 'xXхХ', 'BВв', 'uս', 'nո']
)
def test_lookalikes_form_at_most_one_class(chars, lookalikes):
  all_chars = sum(chars.values(), [])
  assert sum(all_chars.count(char) for char in lookalikes) <= 1


def test_no_character_is_composed_of_another_and_a_mark(chars):
  for char in sum(chars.values(), []):
    assert not unicodedata.decomposition(char)
    assert ' WITH ' not in unicodedata.name(char)


def test_no_two_classes_look_alike_in_any_font(chars):
  all_chars = sum(chars.values(), [])
  for font in glyphs.find_fonts():
    codepoints = glyphs.font_codepoints(font)
    in_font = [char for char in all_chars if ord(char) in codepoints]
    shapes = np.stack([unwarped(char, font).ravel() for char in in_font])
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    similarity = shapes @ shapes.T - np.eye(len(in_font))
    assert similarity.max() < 0.98


def test_images_are_light_ink_with_a_black_border(splits):
  for records in splits.values():
    for record in records[:: glyphs.IMAGES_PER_CLASS * 10 + 1]:
      image = np.asarray(Image.open(io.BytesIO(record.read())))
      assert image.shape == (28, 28) and image.dtype == np.uint8
      assert image.max() > 128
      edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
      assert edge.max() == 0


def test_images_are_deterministic(splits):
  again = data.spec('glyphs').find_records(None)
  for split, records in splits.items():
    assert [r[:2] for r in records] == [r[:2] for r in again[split]]
    for record, other in zip(records[::997], again[split][::997], strict=True):
      assert record.read() == other.read()


def test_images_of_a_class_differ(splits):
  images = {record.read() for record in splits['test'][:20]}
  assert len(images) == glyphs.IMAGES_PER_CLASS


def test_glyphs_are_generated_on_first_use(tmp_path, monkeypatch, splits):
  few = {split: records[:100] for split, records in splits.items()}
  spec = dataclasses.replace(glyphs.SPEC, find_records=lambda _: few)
  monkeypatch.setitem(data.SPECS, 'glyphs', spec)
  test = data.load_dataset('glyphs', 'test', tmp_path)
  assert test.images.shape == (100, 28, 28, 1)
  assert isinstance(test.images, np.memmap)
  np.testing.assert_array_equal(test.size, [20] * 5)
  names = data.class_names('glyphs', 'test', tmp_path)
  assert [unicodedata.name(name[0]) for name in names] == [
    name[2:] for name in names
  ]
