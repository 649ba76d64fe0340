"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each.

Lake et al., "Human-level concept learning through probabilistic program
induction", 2015. As is usual, and as in the official MAML code, drawings are
reduced to 28 x 28, light ink on dark (ink is 255), and each character turned
by 90, 180 and 270 degrees is three new classes of the same split.

All 1,623 characters are split as in the official MAML code: 1,100 to train on,
100 to validate, 423 to test; which ones is settled here by a hash of their
names. Of fewer, whole alphabets are dealt out, so that no split shares an
alphabet with another.
"""

import hashlib
from pathlib import Path

from maml_jax.data import records
from maml_jax.utils.errors import UserError

LAYOUT = """\
images_background.zip and images_evaluation.zip
images_background_small1.zip, images_background_small2.zip
any of them unpacked: .../Alphabet/character01/0001_01.png"""

NUM_CHARACTERS = 1623
NUM_TRAIN, NUM_VAL = 1100, 100
# Alphabets, in order of name, go to these splits by turns.
TURNS = 'train test val train train train test train'.split()


def _source(directory: Path) -> records.Splits:
  drawings: dict[str, dict] = {}  # by character; then by file name, only once
  for path, read in records.scan_images(directory).items():
    if len(path.parts) >= 3:
      character = '/'.join(path.parts[-3:-1])
      drawings.setdefault(character, {}).setdefault(path.stem, read)
  splits = {split: [] for split in records.SPLITS}
  for character, split in _split(sorted(drawings)).items():
    for stem, read in sorted(drawings[character].items()):
      splits[split].append(records.Record(character, stem, read))
  return splits


def _split(characters: list[str]) -> dict[str, str]:
  """Split of each character, given 'alphabet/character' in order."""
  if len(characters) == NUM_CHARACTERS:
    dealt = sorted(
      characters, key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    split = {name: 'test' for name in dealt}
    split |= {name: 'val' for name in dealt[: NUM_TRAIN + NUM_VAL]}
    split |= {name: 'train' for name in dealt[:NUM_TRAIN]}
    return {name: split[name] for name in characters}
  alphabets = sorted({name.split('/')[0] for name in characters})
  if 0 < len(alphabets) < len(records.SPLITS):
    raise UserError(
      f'omniglot: {len(alphabets)} alphabets cannot make three splits that'
      f' share none: {", ".join(alphabets)}'
    )
  turn = {name: TURNS[i % len(TURNS)] for i, name in enumerate(alphabets)}
  return {name: turn[name.split('/')[0]] for name in characters}


SPEC = records.DatasetSpec(
  name='omniglot',
  image_shape=(28, 28, 1),
  layout=LAYOUT,
  source=_source,
  images_per_class=20,
  invert=True,
  light_on_dark=True,
  rotations=4,
)
