"""Malicious input raises an error, is never executed and never crashes.

Broken files of single data set layouts are tested with these layouts.
"""

import ast
import contextlib
import json
import os
import pathlib
import pickle
import pickletools
import resource
import stat
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
import small_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import png

from maml_jax import cli_flags, data
from maml_jax import config as config_lib
from maml_jax.data import records, safe_pickle, store
from maml_jax.data.datasets import mini_imagenet
from maml_jax.experiment import checkpoint
from maml_jax.pytorch_maml import yaml_section
from maml_jax.utils.errors import MAX_VALUE_LENGTH, UserError

REPOSITORY = pathlib.Path(__file__).parent.parent
fuzzed = settings(
  derandomize=True,
  deadline=None,
  max_examples=200,
  database=None,
  suppress_health_check=list(HealthCheck),
)

# Audit events that code hidden in a file would cause.
EVENTS = (
  'code.',
  'compile',
  'ctypes.',
  'exec',
  'function.',
  'import',
  'marshal.',
  'open',
  'os.',
  'pickle.',
  'shutil.',
  'socket.',
  'subprocess.',
  'sys.',
)
recordings = []


def record_event(event, args):
  if recordings and event.startswith(EVENTS):
    recordings[-1].append((event, *map(str, args[:1])))


sys.addaudithook(record_event)


@contextlib.contextmanager
def audited():
  """Yields a list to which Python's audit events are appended."""
  recordings.append([])
  try:
    yield recordings[-1]
  finally:
    recordings.pop()


def assert_one_line(error):
  text = str(error)
  assert text.isprintable() and len(text) < MAX_VALUE_LENGTH + 400, text


# Pickles

CONTENT = {
  'data': np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
  'fortran': np.asfortranarray(np.eye(3, dtype='>f4')),
  'names': np.array(['a', 'bc']),
  'objects': np.array([None, 'x'], object),
  'labels': [np.int64(3), 4, 2.5, b'six', None, True, 10**30],
}
VALID_PICKLES = [pickle.dumps(CONTENT, protocol) for protocol in range(6)]
SNIPPETS = [
  b'cos\nsystem\n',
  b'cbuiltins\neval\n',
  b'cnumpy\nload\n',
  b'cnumpy\nndarray\n',
  b'cnumpy\ndtype\n',
  b'c_codecs\nencode\n',
  b'\x8c\x02os\x8c\x06system\x93',
  b'(S"touch x"\nios\nsystem\n',
  b'(',
  b')',
  b't',
  b'\x85',
  b'\x86',
  b'R',
  b'b',
  b'\x81',
  b'\x92',
  b'o',
  b'0',
  b'2',
  b'}',
  b']',
  b'N',
  b'.',
  b'P1\n',
  b'Q',
  b'\x82\x01',
  b'h\x00',
  b'h\x01',
  b'r\xff\xff\xff\x7f',
  b'\x8e' + b'\xff' * 8,
  b'K\x05',
  b'J\xff\xff\xff\xff',
  b'I999999999999\n',
  b'U\x02O8',
  b'U\x02V9',
  b'(K\x03U\x01<NNNJ\xff\xff\xff\x7fK\x01K\x00tb',
  b'C\x10' + b'\0' * 16,
]


@st.composite
def mutated_pickles(draw):
  content = draw(st.sampled_from(VALID_PICKLES))
  boundaries = [position for *_, position in pickletools.genops(content)]
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.sampled_from(boundaries)) if draw(st.booleans()) else None
    at = draw(st.integers(0, len(content))) if at is None else at
    num_removed = draw(st.integers(0, 4))
    inserted = draw(st.sampled_from(SNIPPETS) | st.binary(max_size=4))
    content = content[:at] + inserted + content[at + num_removed :]
  return content


@fuzzed
@given(mutated_pickles())
def test_mutated_pickles_run_no_code(tmp_path_factory, content):
  path = tmp_path_factory.getbasetemp() / 'mutated.pickle'
  path.write_bytes(content)
  with audited() as events:
    try:
      safe_pickle.load(path)
    except UserError as error:
      assert str(path) in str(error)
  assert set(events) <= {('open', str(path))}


def array_state(array):
  """Returns the pickled state of an array."""
  return array.__reduce__()[2]


class ArrayWithState(np.ndarray):
  """An array that is pickled with a given state."""

  state = None

  def __reduce__(self):
    function, args, _ = np.zeros(0).__reduce__()
    return function, args, type(self).state


OBJECT = np.dtype(object)


@pytest.mark.parametrize(
  'change_state',
  [
    lambda v, shape, *rest: (v, (10**9,), *rest),
    lambda v, shape, *rest: (v, (-1, -24), *rest),
    lambda v, shape, *rest: (v, (2**62, 2**62, 0), *rest),
    lambda v, shape, _, order, __: (v, shape, OBJECT, order, b'8' * 192),
    lambda v, shape, dtype, order, _: (v, shape, dtype, order, [1] * 24),
    lambda v, shape, dtype, *rest: (v, shape, np.dtype('V24'), *rest),
    lambda v, shape, dtype, *rest: (v, shape, np.dtype('u1,u2'), *rest),
    lambda v, *rest: (v,),
  ],
  ids=[
    'too large',
    'negative shape',
    'overflowing shape',
    'bytes as objects',
    'list as numbers',
    'void dtype',
    'structured dtype',
    'missing fields',
  ],
)
def test_arrays_with_inconsistent_state_raise_error(tmp_path, change_state):
  ArrayWithState.state = change_state(*array_state(CONTENT['data']))
  path = tmp_path / 'inconsistent.pickle'
  path.write_bytes(pickle.dumps(np.zeros(3).view(ArrayWithState)))
  with pytest.raises(UserError):
    safe_pickle.load(path)


@pytest.mark.parametrize(
  'content',
  [
    b'\x80\x02cnumpy\nndarray\n(J\x00\xca\x9a;t\x85R.',  # ndarray((10**9,))
    b'\x80\x02cnumpy\nndarray\n)\x81.',
    b'\x80\x02Nr\xff\xff\xff\x7f.',  # a memo index of 2**31
    b'\x80\x02c_codecs\nencode\n}U\x01xNsb.',  # sets an attribute
    b'\x80\x02\x8e' + b'\xff' * 7 + b'\x0f.',
  ],
  ids=[
    'call of ndarray',
    'new ndarray',
    'memo index',
    'attribute of a function',
    'length of bytes',
  ],
)
def test_pickles_that_would_exhaust_memory_raise_error(tmp_path, content):
  path = tmp_path / 'large.pickle'
  path.write_bytes(content)
  before = peak_memory()
  with pytest.raises(UserError):
    safe_pickle.load(path)
  assert peak_memory() - before < 2**28


def peak_memory():
  """Returns the peak resident memory of this process, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Images


def chunk(name, content):
  body = name + content
  return (
    struct.pack('>I', len(content)) + body + struct.pack('>I', zlib.crc32(body))
  )


def huge_png():
  header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
  pixels = zlib.compress(bytes(10**6))
  parts = chunk(b'IHDR', header), chunk(b'IDAT', pixels), chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def huge_bmp():
  header = struct.pack('<IiiHHIIiiII', 40, 60_000, 60_000, 1, 24, *[0] * 6)
  return b'BM' + struct.pack('<IHHI', 54, 0, 0, 54) + header


def huge_gif():
  head = b'GIF89a' + struct.pack('<HHBBB', 65_535, 65_535, 0x80, 0, 0)
  frame = b',' + struct.pack('<HHHHB', 0, 0, 65_535, 65_535, 0)
  return head + bytes(6) + frame + b'\x02\x02\x44\x01\x00;'


def huge_tiff():
  fields = {
    256: 60_000,
    257: 60_000,
    258: 8,
    259: 1,
    262: 1,
    273: 8,
    277: 1,
    278: 60_000,
    279: 10,
  }
  rows = (struct.pack('<HHII', k, 4, 1, v) for k, v in fields.items())
  directory = struct.pack('<H', len(fields)) + b''.join(rows) + bytes(4)
  return b'II*\0' + struct.pack('<I', 8) + directory


def huge_webp():
  canvas = struct.pack('<I', 16_382)[:3] * 2
  body = b'VP8X' + struct.pack('<I', 10) + bytes(4) + canvas
  body += b'VP8L' + struct.pack('<I', 6) + b'\x2f\xff\xff\xff\x0f\x00'
  return b'RIFF' + struct.pack('<I', 4 + len(body)) + b'WEBP' + body


def eps_program():
  """Returns an EPS file, for which Pillow would run Ghostscript."""
  return (
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
    b'(%pipe%touch x) (w) file\n%%EOF\n'
  )


MALICIOUS = [huge_png, huge_bmp, huge_gif, huge_tiff, huge_webp, eps_program]


@pytest.mark.parametrize('make', MALICIOUS)
def test_decompression_bombs_and_programs_raise_error(make):
  store.decode_image(png(np.zeros((84, 84, 3), np.uint8)), mini_imagenet.SPEC)
  before = peak_memory()
  with audited() as events, pytest.raises(Exception) as error:
    store.decode_image(make(), mini_imagenet.SPEC)
  assert not isinstance(error.value, MemoryError)
  assert peak_memory() - before < 2**28
  assert not any(event.startswith('subprocess.') for event, *_ in events)


def test_error_for_huge_image_states_pixel_count_and_class(tmp_path):
  folder = tmp_path / 'train' / 'a'
  folder.mkdir(parents=True)
  (folder / '0.png').write_bytes(huge_png())
  for split in ('val', 'test'):
    (tmp_path / split / split).mkdir(parents=True)
    image = png(np.zeros((84, 84, 3), np.uint8))
    (tmp_path / split / split / '0.png').write_bytes(image)
  with pytest.raises(UserError, match="'0.png' of class 'a': .*3600000000 pix"):
    data.prepare('folder', tmp_path, tmp_path / 'prepared')


@fuzzed
@given(
  st.sampled_from(
    [
      huge_png(),
      huge_bmp(),
      huge_gif(),
      huge_tiff(),
      huge_webp(),
      png(np.zeros((5, 5, 3), np.uint8)),
    ]
  ),
  st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
)
def test_mutated_images_are_decoded_or_raise_error(content, changes):
  content = bytearray(content)
  for at, byte in changes:
    content[at % len(content)] = byte
  before = peak_memory()
  with audited() as events, contextlib.suppress(Exception):
    pixels = store.decode_image(bytes(content), mini_imagenet.SPEC)
    assert pixels.shape == (84, 84, 3)
  assert peak_memory() - before < 2**30
  assert not any(event.startswith('subprocess.') for event, *_ in events)


# Archives and folders


def test_symbolic_link_in_zip_is_not_followed(tmp_path):
  (tmp_path / 'secret').write_bytes(png(np.zeros((9, 9), np.uint8)))
  entry = zipfile.ZipInfo('a/0.png')
  entry.external_attr = (stat.S_IFLNK | 0o777) << 16
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as file:
    file.writestr(entry, str(tmp_path / 'secret'))
  ((_, read),) = records.scan_images(tmp_path).items()
  assert read() == str(tmp_path / 'secret').encode()
  assert sorted(os.listdir(tmp_path)) == ['secret', 'x.zip']


def test_oversized_zip_entry_is_not_unpacked(tmp_path, monkeypatch):
  monkeypatch.setattr(records, 'MAX_BYTES', 2**25)
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as file:
    with file.open('a/0.png', 'w') as entry:
      for _ in range(records.MAX_BYTES // 2**20 + 1):
        entry.write(bytes(2**20))
  assert (tmp_path / 'x.zip').stat().st_size < 2**20
  ((_, read),) = records.scan_images(tmp_path).items()
  before = peak_memory()
  with pytest.raises(UserError, match='size of 34603008 bytes exceeds'):
    read()
  assert peak_memory() - before < 2**24


def test_zip_entry_is_unpacked_up_to_its_declared_size_only(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('a/0.png', bytes(10**6))
  content = (tmp_path / 'x.zip').read_bytes()
  declared_size = struct.pack('<I', 10)
  at = content.rindex(struct.pack('<I', 10**6))
  content = content[:at] + declared_size + content[at + 4 :]
  (tmp_path / 'x.zip').write_bytes(content)
  ((_, read),) = records.scan_images(tmp_path).items()
  with pytest.raises(zipfile.BadZipFile):
    read()


def test_oversized_file_is_not_read(tmp_path):
  with open(tmp_path / '0.png', 'wb') as file:
    file.truncate(2**40)
  ((_, read),) = records.scan_images(tmp_path).items()
  with pytest.raises(UserError, match='size of 1099511627776 bytes exceeds'):
    read()


def test_cycles_of_symbolic_links_terminate(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / '0.png').write_bytes(b'')
  (tmp_path / 'a' / 'up').symlink_to(tmp_path)
  (tmp_path / 'a' / 'here').symlink_to(tmp_path / 'a')
  (tmp_path / 'other').symlink_to(tmp_path / 'a')
  assert len(records.scan_images(tmp_path)) <= 2


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255))))
def test_mutated_archives_are_read_or_raise_error(tmp_path_factory, changes):
  path = tmp_path_factory.getbasetemp() / 'archives' / 'mutated.zip'
  path.parent.mkdir(exist_ok=True)
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('a/0.png', b'first')
    file.writestr('b/1.png', b'second')
  content = bytearray(path.read_bytes())
  for at, byte in changes:
    content[at % len(content)] = byte
  path.write_bytes(content)
  try:
    for read in records.scan_images(path).values():
      with contextlib.suppress(Exception):  # reported by the caller
        read()
  except UserError as error:
    assert str(path) in str(error)
  assert os.listdir(path.parent) == [path.name]  # nothing is extracted


# TFDS files


def tfds_features(class_name):
  return {
    'pythonClassName': 'tensorflow_datasets.core.features.features_dict.'
    'FeaturesDict',
    'featuresDict': {'features': {'image': {'pythonClassName': class_name}}},
  }


@pytest.mark.parametrize('key', ['pythonClassName', 'type'])
def test_tfds_features_import_no_foreign_modules(tmp_path, monkeypatch, key):
  (tmp_path / 'evil.py').write_text('raise SystemExit("run")')
  monkeypatch.syspath_prepend(tmp_path)
  text = json.dumps(tfds_features('evil.Feature')).replace(
    'pythonClassName', key
  )
  (tmp_path / 'features.json').write_text(text)
  (tmp_path / 'dataset_info.json').write_text('{"name": "cifar100"}')
  with pytest.raises(
    UserError, match='feature evil.Feature is not part of TFDS'
  ):
    records.list_tfds_records('fc100', tmp_path, 'cifar100')
  with pytest.raises(
    UserError, match='feature evil.Feature is not part of TFDS'
  ):
    store.write_arrays(tmp_path, mini_imagenet.SPEC, 'train')
  assert 'evil' not in sys.modules


# Prepared arrays


class Touch:
  """Is pickled as a call that creates a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


@pytest.mark.parametrize(
  'classes',
  [
    {'a': -1, 'b': 4},
    {'a': 2**31, 'b': 3 - 2**31},
    {'a': 10**30},
    {'a': '3'},
    {'a': [3]},
    {},
    [3],
    3,
    None,
  ],
)
def test_arrays_with_invalid_class_sizes_are_rejected(tmp_path, classes):
  folder = store.arrays_dir(tmp_path, 'train')
  folder.mkdir(parents=True)
  np.save(folder / 'image.npy', np.zeros((3, 84, 84, 3), np.uint8))
  (folder / 'classes.json').write_text(json.dumps(classes))
  assert store.read_arrays(tmp_path, mini_imagenet.SPEC, 'train') is None


def test_pickled_object_arrays_are_not_loaded(tmp_path):
  folder = store.arrays_dir(tmp_path, 'train')
  folder.mkdir(parents=True)
  objects = np.array([Touch(tmp_path / 'touched')] * 3)
  np.save(folder / 'image.npy', objects, allow_pickle=True)
  (folder / 'classes.json').write_text('{"a": 3}')
  assert store.read_arrays(tmp_path, mini_imagenet.SPEC, 'train') is None
  assert not (tmp_path / 'touched').exists()


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255))))
def test_mutated_array_headers_are_read_or_rejected(tmp_path_factory, changes):
  folder = store.arrays_dir(tmp_path_factory.getbasetemp() / 'mutated', 'train')
  folder.mkdir(parents=True, exist_ok=True)
  np.save(folder / 'image.npy', np.zeros((3, 84, 84, 3), np.uint8))
  (folder / 'classes.json').write_text('{"a": 3}')
  content = bytearray((folder / 'image.npy').read_bytes())
  for at, byte in changes:
    content[at] = byte
  (folder / 'image.npy').write_bytes(content)
  root = folder.parent.parent
  dataset = store.read_arrays(root, mini_imagenet.SPEC, 'train')
  assert dataset is None or dataset.images.shape == (3, 84, 84, 3)


# YAML

NESTED_ALIASES = 'a: &a [x, x]\n' + ''.join(
  f'{b}: &{b} [*{a}, *{a}]\n'
  for a, b in zip('abcdefgh', 'bcdefghi', strict=True)
)
NESTED_MERGES = 'a: &a {x: 1}\n' + ''.join(
  f'{b}: &{b} {{<<: [*{a}, *{a}]}}\n'
  for a, b in zip('abcdefgh', 'bcdefghi', strict=True)
)


@pytest.mark.parametrize(
  'text, message',
  [
    (NESTED_ALIASES, 'line 2: not plain YAML: aliases are not supported'),
    (NESTED_MERGES, 'line 2: not plain YAML: aliases are not supported'),
    ('a: !!python/object/apply:os.system ["touch x"]', 'could not determine'),
    ('a: !!python/name:os.system', 'could not determine'),
    ('!!python/module:os', 'could not determine'),
    ('a: ' + '[' * 1000, 'not plain YAML'),
    ('a: ' + '9' * 5000, 'not plain YAML'),
    ('a: 1' + ':59' * 400 + '.5', 'not plain YAML'),
    ('a: 2001-99-99', 'not plain YAML'),
    ('a: "\x1b[2J"', 'not plain YAML'),
  ],
)
def test_yaml_with_aliases_or_tags_raises_error(tmp_path, text, message):
  path = tmp_path / 'x.yaml'
  path.write_text(text)
  with audited() as events, pytest.raises(UserError, match=message) as error:
    yaml_section.read_yaml(path)
  assert_one_line(error.value)
  assert {event for event, *_ in events} <= {'open'}


@fuzzed
@given(
  st.lists(
    st.sampled_from(
      [
        'a',
        ':',
        ' ',
        '\n',
        '- ',
        '{',
        '}',
        '[',
        ']',
        '&a',
        '*a',
        '!!',
        '!',
        '|',
        '>',
        '<<',
        '? ',
        '"',
        "'",
        '#',
        '%',
        '---',
        '0x',
        '1:2',
        '.inf',
        'null',
        '2001-01-01',
        '!!binary ',
        '!!set ',
        '!!python/',
        '\t',
        '\x00',
        '\ufeff',
      ]
    ),
    max_size=12,
  )
)
def test_random_yaml_is_a_dict_or_raises_error(tmp_path_factory, tokens):
  path = tmp_path_factory.getbasetemp() / 'fuzzed.yaml'
  path.write_text(''.join(tokens), 'utf-8')
  try:
    content = yaml_section.read_yaml(path)
  except UserError as error:
    assert '\n' not in str(error)
  else:
    assert type(content) is dict


# Config values and command lines

BASE = config_lib.to_json(small_run.config())
FIELDS = sorted(config_lib.flatten(small_run.config()))
LITERALS = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=8)
  | st.binary(max_size=4)
  | st.complex_numbers()
  | st.just(10**9)
  | st.just(10**400)
  | st.sampled_from(config_lib.NORMS),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=3), inner, max_size=2)
  ),
  max_leaves=8,
)
WORDS = st.one_of(
  LITERALS.map(repr),
  st.text(max_size=20),
  st.sampled_from(
    [
      '9' * 5000,
      '(' * 3000,
      '[' * 90_000,
      '-' * 20_000,
      '1,' * 5000,
      'x' * 10**5,
      '1e999',
      'nan',
      '-inf',
      '1_0',
      '\u0661',
      '\ud800',
      '\0',
      'a\nb',
      '\x1b[2J',
      '{[]: 1}',
      '{1: 2}',
      '...',
      '__import__("os").system("touch x")',
      '1/0',
      '9**9**9',
      '[0]*10**9',
      '"a"*10**9',
      'lambda: 0',
      '(1,' * 90 + ')' * 90,
    ]
  ),
)


@settings(fuzzed, max_examples=400)
@given(st.sampled_from(FIELDS), WORDS)
def test_any_override_is_valid_or_raises_one_line_error(field, word):
  config = config_lib.from_json(BASE)
  with audited() as events:
    try:
      config_lib.override(config, [f'--config.{field}={word}'])
    except UserError as error:
      assert_one_line(error)
    else:
      again = config_lib.from_json(config_lib.to_json(config))
      config_lib.validate(again)
      assert config_lib.flatten(again) == config_lib.flatten(config)
      value = config_lib.flatten(config)[field]
      assert type(value) is not int or value <= 2**32
  assert {event for event, *_ in events} <= {'compile'}  # by literal_eval


@settings(fuzzed, max_examples=100)
@given(st.sampled_from(FIELDS), LITERALS)
def test_any_saved_value_is_valid_or_raises_one_line_error(field, value):
  tree = json.loads(BASE)
  *sections, name = field.split('.')
  branch = tree
  for key in sections:
    branch = branch[key]
  branch[name] = value
  try:
    text = json.dumps(tree)
  except TypeError:  # not representable in JSON
    return
  try:
    config_lib.validate(config_lib.from_json(text))
  except UserError as error:
    assert_one_line(error)


def test_every_integer_field_has_bounds():
  for field, value in config_lib.flatten(small_run.config()).items():
    if type(value) is int:
      for invalid, message in ((-1, 'at least'), (10**10, 'at most')):
        config = config_lib.from_json(BASE)
        with pytest.raises(UserError, match=f'{field}=.*{message}'):
          config_lib.override(config, [f'--config.{field}={invalid}'])


@settings(fuzzed, max_examples=100)
@given(
  st.lists(
    st.sampled_from(
      [
        '--mode=',
        '--config',
        '--workdir=',
        '--tag',
        '--seed=',
        '-',
        '--',
        '--task.ways=',
        '=',
        'train',
        '--task',
        '--mode',
      ]
    )
    | st.text(max_size=6),
    max_size=4,
  )
)
def test_any_command_line_is_parsed_or_raises_user_error(words):
  with contextlib.suppress(UserError):
    cli_flags.parse([word for word in words if word not in ('-h', '--help')])


# Loading without running code


def test_loading_checkpoints_runs_no_code(tmp_path):
  from test_checkpoint import save

  save(tmp_path, 1)
  checkpoint.load(tmp_path, 'latest')  # imports modules
  with audited() as events:
    checkpoint.load(tmp_path, 'latest')
  names = {event for event, *_ in events}
  assert not any(name.startswith(('pickle', 'marshal')) for name in names)
  assert names.isdisjoint({'exec', 'compile', 'import', 'subprocess.Popen'})


def calls(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func), ast.unparse(node)


@pytest.mark.parametrize(
  'path', sorted((REPOSITORY / 'maml_jax').rglob('*.py')), ids=lambda p: p.stem
)
def test_package_executes_only_config_files(path):
  for name, call in calls(ast.parse(path.read_text())):
    if name == 'runpy.run_path':
      assert path.name == 'config.py'
    if name.endswith(('np.load', 'numpy.load')):
      assert 'allow_pickle=True' not in call  # False is the default
    if name == 'torch.load':
      assert 'weights_only=True' in call
    if name == 'yaml.load':
      assert 'Loader=_Loader' in call
    assert name not in (
      'eval',
      'exec',
      'compile',
      '__import__',
      'pickle.load',
      'pickle.loads',
      'marshal.loads',
      'os.system',
      'os.popen',
      'yaml.unsafe_load',
      'yaml.full_load',
      'zipfile.extractall',
      'shutil.unpack_archive',
    )
    assert not name.endswith(('.extractall', '.extract'))
