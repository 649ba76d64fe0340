"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each.

Lake et al., "Human-level concept learning through probabilistic program
induction", 2015. As in the official MAML code, drawings are resized to 28 x 28,
light ink on black (ink is 255), and each character rotated by 90, 180 and 270
degrees makes three new classes of the same split.

The full set of 1,623 characters is split into 1,100 for training, 100 for
validation and 423 for testing, as in the official MAML code; the characters of
each split are selected by a hash of their names. A smaller set is split by
alphabet, so that no two splits share one.
"""

import hashlib
import itertools
from pathlib import Path

from maml_jax.data import records
from maml_jax.utils.errors import UserError

__all__ = ['LAYOUT', 'NUM_CHARACTERS', 'SPEC', 'assign_splits']

LAYOUT = f"""\
images_background.zip and images_evaluation.zip
images_background_small1.zip, images_background_small2.zip
any of them extracted: .../Alphabet/character01/0001_01.png
{records.SPLIT_FOLDERS}"""

NUM_CHARACTERS = 1623
NUM_TRAIN, NUM_VAL = 1100, 100
# Splits of the alphabets of a smaller set, sorted by name; repeated as needed.
ALPHABET_SPLITS = 'train test val train train train test train'.split()


def _find_records(directory: Path) -> records.Splits:
  images = records.scan_images(directory)
  splits = records.find_split_folders(SPEC.name, images, nested_classes=True)
  if splits:
    return splits
  drawings: dict[str, dict] = {}  # by character, then by file name
  for path, read in images.items():
    if len(path.parts) >= 3:
      character = '/'.join(path.parts[-3:-1])
      drawings.setdefault(character, {}).setdefault(path.stem, read)
  splits = {split: [] for split in records.SPLITS}
  for character, split in assign_splits(sorted(drawings)).items():
    for stem, read in sorted(drawings[character].items()):
      splits[split].append(records.Record(character, stem, read))
  return splits


def assign_splits(characters: list[str]) -> dict[str, str]:
  """Returns the split of each character.

  Args:
    characters: names 'alphabet/character', sorted.

  Raises:
    UserError: there are too few alphabets.
  """
  if len(characters) == NUM_CHARACTERS:
    shuffled = sorted(
      characters, key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    split_of = dict.fromkeys(shuffled, 'test')
    split_of |= dict.fromkeys(shuffled[: NUM_TRAIN + NUM_VAL], 'val')
    split_of |= dict.fromkeys(shuffled[:NUM_TRAIN], 'train')
    return {name: split_of[name] for name in characters}
  alphabets = sorted({name.split('/')[0] for name in characters})
  if 0 < len(alphabets) < len(records.SPLITS):
    raise UserError(
      'omniglot: at least 3 alphabets are needed for three disjoint splits,'
      f' found {len(alphabets)}: {", ".join(alphabets)}'
    )
  split_of = dict(zip(alphabets, itertools.cycle(ALPHABET_SPLITS)))
  return {name: split_of[name.split('/')[0]] for name in characters}


SPEC = records.DatasetSpec(
  name='omniglot',
  image_shape=(28, 28, 1),
  layout=LAYOUT,
  find_records=_find_records,
  images_per_class=20,
  invert=True,
  light_on_dark=True,
  rotations=4,
)
