"""Hostile input: refused in one line, never run, and never a crash.

What is wrong with single files of a layout is tested beside that layout.
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

from maml_jax import cli, data
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

# What code that was hidden in a file would have to do.
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
_watch = []


def _hook(event, args):
  if _watch and event.startswith(EVENTS):
    _watch[-1].append((event, *map(str, args[:1])))


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched():
  """Yields a list of what Python itself says is done meanwhile."""
  _watch.append([])
  try:
    yield _watch[-1]
  finally:
    _watch.pop()


def assert_one_line(error):
  text = str(error)
  assert text.isprintable() and len(text) < MAX_VALUE_LENGTH + 400, text


# Pickles

CONTENT = {
  'data': np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
  'turned': np.asfortranarray(np.eye(3, dtype='>f4')),
  'names': np.array(['a', 'bc']),
  'objects': np.array([None, 'x'], object),
  'labels': [np.int64(3), 4, 2.5, b'six', None, True, 10**30],
}
SOUND = [pickle.dumps(CONTENT, protocol) for protocol in range(6)]
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
  content = draw(st.sampled_from(SOUND))
  cuts = [position for *_, position in pickletools.genops(content)]
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.sampled_from(cuts)) if draw(st.booleans()) else None
    at = draw(st.integers(0, len(content))) if at is None else at
    drop = draw(st.integers(0, 4))
    new = draw(st.sampled_from(SNIPPETS) | st.binary(max_size=4))
    content = content[:at] + new + content[at + drop :]
  return content


@fuzzed
@given(mutated_pickles())
def test_mutated_pickles_run_nothing(tmp_path_factory, content):
  path = tmp_path_factory.getbasetemp() / 'mutated.pickle'
  path.write_bytes(content)
  with watched() as events:
    try:
      safe_pickle.load(path)
    except UserError as error:
      assert str(path) in str(error)
  assert set(events) <= {('open', str(path))}


def state_of(array):
  """The pieces that NumPy rebuilds an array of."""
  return array.__reduce__()[2]


class Lying(np.ndarray):
  """Pickles as an array whose state is another."""

  state = None

  def __reduce__(self):
    function, args, _ = np.zeros(0).__reduce__()
    return function, args, type(self).state


OBJECT = np.dtype(object)


@pytest.mark.parametrize(
  'lie',
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
)
def test_arrays_of_memory_that_is_none_are_refused(tmp_path, lie):
  Lying.state = lie(*state_of(CONTENT['data']))
  path = tmp_path / 'lying.pickle'
  path.write_bytes(pickle.dumps(np.zeros(3).view(Lying)))
  with pytest.raises(UserError):
    safe_pickle.load(path)


@pytest.mark.parametrize(
  'content',
  [
    b'\x80\x02cnumpy\nndarray\n(J\x00\xca\x9a;t\x85R.',  # ndarray((10**9,))
    b'\x80\x02cnumpy\nndarray\n)\x81.',
    b'\x80\x02Nr\xff\xff\xff\x7f.',  # a memo of 2**31
    b'\x80\x02c_codecs\nencode\n}U\x01xNsb.',  # sets an attribute
    b'\x80\x02\x8e' + b'\xff' * 7 + b'\x0f.',
  ],
)
def test_pickles_that_would_fill_the_memory_are_refused(tmp_path, content):
  path = tmp_path / 'large.pickle'
  path.write_bytes(content)
  before = peak()
  with pytest.raises(UserError):
    safe_pickle.load(path)
  assert peak() - before < 2**28


def peak():
  """The most memory that this process has had, in bytes."""
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


def program():
  """EPS, which Pillow would hand to Ghostscript."""
  return (
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
    b'(%pipe%touch x) (w) file\n%%EOF\n'
  )


HUGE = [huge_png, huge_bmp, huge_gif, huge_tiff, huge_webp, program]


@pytest.mark.parametrize('make', HUGE)
def test_images_that_unpack_to_gigabytes_are_refused(make):
  store.decode_image(png(np.zeros((84, 84, 3), np.uint8)), mini_imagenet.SPEC)
  before = peak()
  with watched() as events, pytest.raises(Exception) as error:
    store.decode_image(make(), mini_imagenet.SPEC)
  assert not isinstance(error.value, MemoryError)
  assert peak() - before < 2**28
  assert not any(event.startswith('subprocess.') for event, *_ in events)


def test_an_image_of_many_pixels_is_said_to_be(tmp_path):
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
def test_mutated_images_are_decoded_or_refused(content, changes):
  content = bytearray(content)
  for at, byte in changes:
    content[at % len(content)] = byte
  before = peak()
  with watched() as events, contextlib.suppress(Exception):
    pixels = store.decode_image(bytes(content), mini_imagenet.SPEC)
    assert pixels.shape == (84, 84, 3)
  assert peak() - before < 2**30
  assert not any(event.startswith('subprocess.') for event, *_ in events)


# Archives and folders


def test_a_link_in_a_zip_is_not_followed(tmp_path):
  (tmp_path / 'secret').write_bytes(png(np.zeros((9, 9), np.uint8)))
  entry = zipfile.ZipInfo('a/0.png')
  entry.external_attr = (stat.S_IFLNK | 0o777) << 16
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as file:
    file.writestr(entry, str(tmp_path / 'secret'))
  ((_, read),) = records.scan_images(tmp_path).items()
  assert read() == str(tmp_path / 'secret').encode()
  assert sorted(os.listdir(tmp_path)) == ['secret', 'x.zip']


def test_an_entry_that_unpacks_to_gigabytes_is_not_unpacked(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(records, 'MAX_BYTES', 2**25)
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as file:
    with file.open('a/0.png', 'w') as entry:
      for _ in range(records.MAX_BYTES // 2**20 + 1):
        entry.write(bytes(2**20))
  assert (tmp_path / 'x.zip').stat().st_size < 2**20
  ((_, read),) = records.scan_images(tmp_path).items()
  before = peak()
  with pytest.raises(UserError, match='it is of 34603008 bytes; at most'):
    read()
  assert peak() - before < 2**24


def test_an_entry_that_lies_of_its_size_gives_no_more(tmp_path):
  """The size in the directory of the archive is the most that is unpacked."""
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('a/0.png', bytes(10**6))
  content = (tmp_path / 'x.zip').read_bytes()
  claim = struct.pack('<I', 10)
  at = content.rindex(struct.pack('<I', 10**6))
  content = content[:at] + claim + content[at + 4 :]
  (tmp_path / 'x.zip').write_bytes(content)
  ((_, read),) = records.scan_images(tmp_path).items()
  with pytest.raises(zipfile.BadZipFile):
    read()


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
  with open(tmp_path / '0.png', 'wb') as file:
    file.truncate(2**40)
  ((_, read),) = records.scan_images(tmp_path).items()
  with pytest.raises(UserError, match='it is of 1099511627776 bytes'):
    read()


def test_links_in_circles_are_walked_once(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / '0.png').write_bytes(b'')
  (tmp_path / 'a' / 'up').symlink_to(tmp_path)
  (tmp_path / 'a' / 'here').symlink_to(tmp_path / 'a')
  (tmp_path / 'other').symlink_to(tmp_path / 'a')
  assert len(records.scan_images(tmp_path)) <= 2


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255))))
def test_mutated_archives_are_read_or_refused(tmp_path_factory, changes):
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
      with contextlib.suppress(Exception):  # named where it is used
        read()
  except UserError as error:
    assert str(path) in str(error)
  assert os.listdir(path.parent) == [path.name]  # nothing is extracted


# Files of TFDS


def features(name):
  return {
    'pythonClassName': 'tensorflow_datasets.core.features.features_dict.'
    'FeaturesDict',
    'featuresDict': {'features': {'image': {'pythonClassName': name}}},
  }


@pytest.mark.parametrize('key', ['pythonClassName', 'type'])
def test_features_of_tfds_import_nothing(tmp_path, monkeypatch, key):
  (tmp_path / 'evil.py').write_text('raise SystemExit("run")')
  monkeypatch.syspath_prepend(tmp_path)
  text = json.dumps(features('evil.Feature')).replace('pythonClassName', key)
  (tmp_path / 'features.json').write_text(text)
  (tmp_path / 'dataset_info.json').write_text('{"name": "cifar100"}')
  with pytest.raises(UserError, match='asks for evil.Feature'):
    records.tfds_records('fc100', tmp_path, 'cifar100')
  with pytest.raises(UserError, match='asks for evil.Feature'):
    store.write_arrays(tmp_path, mini_imagenet.SPEC, 'train')
  assert 'evil' not in sys.modules


# Prepared arrays


class Touch:
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
def test_arrays_whose_classes_lie_are_none(tmp_path, classes):
  folder = store.arrays_dir(tmp_path, 'train')
  folder.mkdir(parents=True)
  np.save(folder / 'image.npy', np.zeros((3, 84, 84, 3), np.uint8))
  (folder / 'classes.json').write_text(json.dumps(classes))
  assert store.read_arrays(tmp_path, mini_imagenet.SPEC, 'train') is None


def test_arrays_that_are_pickles_are_not_loaded(tmp_path):
  folder = store.arrays_dir(tmp_path, 'train')
  folder.mkdir(parents=True)
  objects = np.array([Touch(tmp_path / 'touched')] * 3)
  np.save(folder / 'image.npy', objects, allow_pickle=True)
  (folder / 'classes.json').write_text('{"a": 3}')
  assert store.read_arrays(tmp_path, mini_imagenet.SPEC, 'train') is None
  assert not (tmp_path / 'touched').exists()


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255))))
def test_mutated_headers_of_arrays_are_read_or_none(tmp_path_factory, changes):
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

LAUGHS = 'a: &a [x, x]\n' + ''.join(
  f'{b}: &{b} [*{a}, *{a}]\n'
  for a, b in zip('abcdefgh', 'bcdefghi', strict=True)
)
MERGES = 'a: &a {x: 1}\n' + ''.join(
  f'{b}: &{b} {{<<: [*{a}, *{a}]}}\n'
  for a, b in zip('abcdefgh', 'bcdefghi', strict=True)
)


@pytest.mark.parametrize(
  'text, message',
  [
    (LAUGHS, 'line 2: no plain YAML: it has aliases'),
    (MERGES, 'line 2: no plain YAML: it has aliases'),
    ('a: !!python/object/apply:os.system ["touch x"]', 'could not determine'),
    ('a: !!python/name:os.system', 'could not determine'),
    ('!!python/module:os', 'could not determine'),
    ('a: ' + '[' * 1000, 'no plain YAML'),
    ('a: ' + '9' * 5000, 'no plain YAML'),
    ('a: 1' + ':59' * 400 + '.5', 'no plain YAML'),
    ('a: 2001-99-99', 'no plain YAML'),
    ('a: "\x1b[2J"', 'no plain YAML'),
  ],
)
def test_yaml_that_is_more_than_data_is_refused(tmp_path, text, message):
  path = tmp_path / 'x.yaml'
  path.write_text(text)
  with watched() as events, pytest.raises(UserError, match=message) as error:
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
def test_yaml_of_any_tokens_is_data_or_refused(tmp_path_factory, tokens):
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
def test_any_value_is_valid_or_refused_in_one_line(field, word):
  config = config_lib.from_json(BASE)
  with watched() as events:
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
  assert {event for event, *_ in events} <= {'compile'}  # of literals


@settings(fuzzed, max_examples=100)
@given(st.sampled_from(FIELDS), LITERALS)
def test_any_value_in_a_saved_config_is_valid_or_refused(field, value):
  tree = json.loads(BASE)
  *sections, name = field.split('.')
  branch = tree
  for key in sections:
    branch = branch[key]
  branch[name] = value
  try:
    text = json.dumps(tree)
  except TypeError:  # JSON has no such value
    return
  try:
    config_lib.validate(config_lib.from_json(text))
  except UserError as error:
    assert_one_line(error)


def test_every_field_has_a_kind_and_numbers_have_bounds():
  config = small_run.config()
  for field, value in config_lib.flatten(config).items():
    if field not in config_lib.NORM_FIELDS:
      assert config_lib.TYPES[field] is type(value), field
  for field, kind in config_lib.TYPES.items():
    assert (field in config_lib.MINIMUM) >= (kind is int), field
    if kind is int:
      slip = f'--config.{field}={10**10}'
      with pytest.raises(UserError, match='at most'):
        config_lib.override(config_lib.from_json(BASE), [slip])


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
def test_any_command_line_is_understood_or_refused(words):
  with contextlib.suppress(UserError):
    cli.parse([word for word in words if word not in ('-h', '--help')])


# What is read, and how


def test_checkpoints_are_read_as_data(tmp_path):
  from test_checkpoint import save

  save(tmp_path, 1)
  checkpoint.load(tmp_path, 'latest')  # imports what it needs
  with watched() as events:
    checkpoint.load(tmp_path, 'latest')
  told = {event for event, *_ in events}
  assert not any(name.startswith(('pickle', 'marshal')) for name in told)
  assert told.isdisjoint({'exec', 'compile', 'import', 'subprocess.Popen'})


def calls(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func), ast.unparse(node)


@pytest.mark.parametrize(
  'path', sorted((REPOSITORY / 'maml_jax').rglob('*.py')), ids=lambda p: p.stem
)
def test_nothing_in_the_package_reads_code(path):
  """Configs alone are code: the user's own, in Python."""
  for name, call in calls(ast.parse(path.read_text())):
    if name == 'runpy.run_path':
      assert path.name == 'config.py'
    if name.endswith(('np.load', 'numpy.load')):
      assert 'allow_pickle=True' not in call  # as is the default
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
