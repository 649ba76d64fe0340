"""Reads the text of compiled HLO: what it moves, launches and takes.

The text of a compiled program is the only description of it that every backend
gives. `executed` lists its instructions with the number of times each one runs;
loops whose length depends on an input count as one iteration, so that the train
step of `main.py` counts as one meta-iteration.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

__all__ = [
  'Instruction',
  'Program',
  'convolution_kind',
  'executed',
  'moved_bytes',
  'parse',
  'summarize',
  'type_bytes',
]

# Bits per number.
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'c64': 64, 'c128': 128}
_SHAPE = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?')
_START = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = ')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|true_computation|false_computation)='
  r'%?([\w.-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
# Instructions that neither run a kernel nor move anything.
_FREE = {
  'after-all',
  'bitcast',
  'constant',
  'get-tuple-element',
  'opt-barrier',
  'parameter',
  'partition-id',
  'replica-id',
  'tuple',
}
_CONTROL = {'call', 'conditional', 'while'}
_COPIES = {'copy', 'copy-start', 'transpose'}
_SLICES = {'dynamic-slice', 'gather', 'slice'}
_LAYOUT_OPS = {'bitcast', 'broadcast', 'copy', 'reshape', 'transpose'}
# What a kernel is for, by a part of its name; the first match counts.
_KINDS = (
  ('max_pool', 'pooling'),
  ('conv_kernel_grad', 'convolution'),
  ('/bn', 'norm'),
)


class Instruction(NamedTuple):
  """An instruction of HLO.

  Attributes:
    name: unique in its computation.
    type: such as `f32[5,3]{1,0:T(8,128)}`, or a tuple of such types.
    opcode: such as `fusion`.
    operands: the names of its operands.
    attributes: everything that follows the operands, as text.
    literal: the text between the brackets, the value of a constant.
  """

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  literal: str

  @property
  def called(self) -> list[str]:
    """The computations that the instruction runs, except loop conditions."""
    names = _CALLED.findall(self.attributes)
    for branches in _BRANCHES.findall(self.attributes):
      names += [name.strip().lstrip('%') for name in branches.split(',')]
    return names

  @property
  def op_name(self) -> str:
    """The scopes in which JAX traced it, such as `jit(f)/conv/add`."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''

  @property
  def estimated_cycles(self) -> int:
    """The estimate of the TPU compiler; 0 if there is none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
    return int(found[1]) if found else 0


class Program(NamedTuple):
  """A parsed program.

  Attributes:
    computations: name -> instructions by name, in their order.
    entry: the name of the computation that runs first.
  """

  computations: dict[str, dict[str, Instruction]]
  entry: str


def parse(text: str) -> Program:
  """Parses the text of a compiled program, `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif current is not None and (start := _START.match(line)):
      instruction = _parse_instruction(start[1], line[start.end() :])
      current[instruction.name] = instruction
  if entry is None:
    raise ValueError('no HLO: the text has no ENTRY computation')
  return Program(computations, entry)


def _parse_instruction(name: str, text: str) -> Instruction:
  end = _closing(text, 0) if text.startswith('(') else text.index(' ')
  type_, rest = text[:end], text[end:].lstrip()
  start = rest.index('(')
  end = _closing(rest, start)
  inside = rest[start + 1 : end - 1]
  operands = tuple(re.findall(r'%([\w.-]+)', inside))
  return Instruction(name, type_, rest[:start], operands, rest[end:], inside)


def _closing(text: str, start: int) -> int:
  """Returns the index after the bracket that closes the one at `start`."""
  depth = 0
  for match in re.finditer(r'[()]', text[start:]):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return start + match.end()
  raise ValueError(f'unbalanced brackets in HLO: {text[:80]}')


def executed(program: Program) -> Iterator[tuple[Instruction, str, int]]:
  """Yields instructions, their computation and how often each one runs.

  The inside of a fusion is part of the fusion. All branches of a conditional
  count; the condition of a loop does not.
  """
  yield from _executed(program, program.entry, 1)


def _executed(program, computation, times):
  for instruction in program.computations[computation].values():
    yield instruction, computation, times
    if instruction.opcode in _CONTROL:
      repeated = times
      if instruction.opcode == 'while':
        repeated *= _trip_count(program, instruction)
      for name in instruction.called:
        yield from _executed(program, name, repeated)


def _trip_count(program: Program, loop: Instruction) -> int:
  """Returns the iterations of a loop, or 1 if an input decides them."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
  if known:
    return int(known[1])
  condition = re.search(r'condition=%?([\w.-]+)', loop.attributes)[1]
  limits = [
    int(x.literal)
    for x in program.computations[condition].values()
    if x.opcode == 'constant' and re.fullmatch(r'-?\d+', x.literal)
  ]
  return max(limits, default=1)


def type_bytes(type_: str, hbm_only: bool = False) -> int:
  """Returns the bytes of a type, with the padding of its tiles.

  Args:
    type_: see `Instruction.type`; the bytes of the parts of a tuple add up.
    hbm_only: count what is in main memory only, not in another memory space.
  """
  return sum(
    _shape_bytes(dtype, dims, layout or '')
    for dtype, dims, layout in _SHAPE.findall(type_)
    if not (hbm_only and re.search(r'S\([1-9]', layout or ''))
  )


def _shape_bytes(dtype: str, dims: str, layout: str) -> int:
  sizes = [int(n) for n in dims.split(',') if n]
  digits = re.search(r'\d+', dtype)
  bits = _BITS.get(dtype) or (int(digits[0]) if digits else 0)
  order, _, tiles = layout.partition(':')
  tile = re.search(r'T\(([\d,]+)\)', tiles)
  if tile and sizes:
    # Minor to major, as tiles cover the minor dimensions.
    ordered = [sizes[int(i)] for i in order.split(',')]
    tile = [int(n) for n in tile[1].split(',')][::-1]
    for i, n in enumerate(tile[: len(ordered)]):
      ordered[i] = -(-ordered[i] // n) * n
    sizes = ordered
  return math.prod(sizes) * bits // 8


def moved_bytes(
  program: Program, instruction: Instruction, computation: str
) -> int:
  """Returns the bytes that an instruction reads and writes in main memory.

  A fusion that only slices an operand reads the slices, and one that updates a
  slice of an operand in place writes that slice.
  """
  if instruction.opcode in _FREE | _CONTROL or _is_done(instruction):
    return 0
  types = [
    program.computations[computation][name].type
    for name in instruction.operands
    if name in program.computations[computation]
  ]
  inner = None
  if instruction.opcode == 'fusion':
    inner = program.computations[instruction.called[0]]
  if inner is None:
    if instruction.opcode in _SLICES:
      return 2 * type_bytes(instruction.type, hbm_only=True)
    if instruction.opcode == 'dynamic-update-slice':
      return 2 * type_bytes(types[1], hbm_only=True)
    if instruction.opcode == 'copy-start':  # source, target and a context
      return sum(type_bytes(t, hbm_only=True) for t in types) + type_bytes(
        _SHAPE.search(instruction.type)[0], hbm_only=True
      )
    return sum(type_bytes(t, hbm_only=True) for t in (*types, instruction.type))
  parameters = {
    int(x.literal): x for x in inner.values() if x.opcode == 'parameter'
  }
  updates = [x for x in inner.values() if x.opcode == 'dynamic-update-slice']
  total = 0
  for number, type_ in enumerate(types):
    total += _read_bytes(inner, parameters[number], type_, updates)
  if updates:
    in_place = {_SHAPE.search(x.type).group(1, 2) for x in updates}
    outputs = [
      m
      for m in _SHAPE.finditer(instruction.type)
      if m.group(1, 2) not in in_place
    ]
    total += sum(type_bytes(m[0], hbm_only=True) for m in outputs)
    return total + sum(type_bytes(inner[x.operands[1]].type) for x in updates)
  return total + type_bytes(instruction.type, hbm_only=True)


def _read_bytes(inner, parameter, type_, updates) -> int:
  """Returns the bytes that a fusion reads of an operand."""
  whole = type_bytes(type_, hbm_only=True)
  if not whole:
    return 0
  names, users = {parameter.name}, []
  for x in inner.values():  # in their order: operands come first
    if names.isdisjoint(x.operands):
      continue
    if x.opcode == 'bitcast':
      names.add(x.name)
    else:
      users.append(x)
  if users and all(x.opcode in _SLICES for x in users):
    return min(whole, sum(type_bytes(x.type) for x in users))
  if users and all(x in updates and x.operands[0] in names for x in users):
    return 0
  return whole


def _is_done(instruction: Instruction) -> bool:
  return instruction.opcode.endswith(('-done', '-update'))


def _parts(program: Program, instruction: Instruction) -> list[Instruction]:
  """Returns the instructions of a fusion, including those of fusions in it."""
  if instruction.opcode != 'fusion':
    return [instruction]
  return [instruction] + [
    part
    for inner in program.computations[instruction.called[0]].values()
    for part in _parts(program, inner)
  ]


def convolution_kind(program: Program, instruction: Instruction) -> str | None:
  """Returns the kind of the convolution in an instruction, or None.

  Returns:
    'forward', 'backward-input', 'backward-filter' or 'grouped'. On a GPU, that
    is the cuDNN function; 'grouped' is a forward convolution with groups. On a
    TPU all are one instruction, and the kind is that of the primitive of
    `maml_jax.ops` that it stems from.
  """
  for part in _parts(program, instruction):
    attributes = part.attributes
    if part.opcode == 'custom-call' and '__cudnn$conv' in attributes:
      if 'convBackwardFilter' in attributes:
        return 'backward-filter'
      if 'convBackwardInput' in attributes:
        return 'backward-input'
    elif part.opcode != 'convolution' or 'dot_general' in part.op_name:
      continue
    groups = re.search(r'feature_group_count=(\d+)', attributes)
    if groups and int(groups[1]) > 1:
      return 'grouped'
    if part.opcode == 'convolution' and 'conv_kernel_grad' in part.op_name:
      return 'backward-filter'
    return 'forward'
  return None


def kernel_kind(program: Program, instruction: Instruction) -> str:
  """Returns what a kernel is for.

  Returns:
    'convolution', 'pooling', 'norm', 'copy', 'all-reduce' or 'other'.
  """
  if instruction.opcode.startswith(('all-reduce', 'all-gather')):
    return 'all-reduce'
  parts = _parts(program, instruction)
  if convolution_kind(program, instruction):
    return 'convolution'
  names = ' '.join(part.op_name for part in parts)
  for word, kind in _KINDS:
    if word in names:
      return kind
  if _is_copy(parts):
    return 'copy'
  return 'other'


def _is_copy(parts: list[Instruction]) -> bool:
  """Returns whether parts only move data."""
  opcodes = {part.opcode for part in parts} - _FREE - {'fusion'}
  return bool(opcodes & _COPIES) and opcodes <= _COPIES | _LAYOUT_OPS


def summarize(program: Program) -> dict:
  """Returns totals over everything that one iteration executes.

  Returns:
    `kernels`; `moved_bytes`; `copied_bytes`, the part of them by copies and
    transposes; `convolutions`, a count by kind; `all_reduces` and
    `all_reduce_bytes`; and `cycles`, the TPU compiler's estimate by kind.
  """
  kernels, moved, copied, reduced = 0, 0, 0, 0
  convolutions, cycles, reduces = Counter(), Counter(), 0
  for instruction, computation, times in executed(program):
    if instruction.opcode in _FREE | _CONTROL or _is_done(instruction):
      continue
    kernels += times
    num_bytes = times * moved_bytes(program, instruction, computation)
    moved += num_bytes
    kind = kernel_kind(program, instruction)
    cycles[kind] += times * instruction.estimated_cycles
    if _is_copy(_parts(program, instruction)):
      copied += num_bytes
    if found := convolution_kind(program, instruction):
      convolutions[found] += times
    if kind == 'all-reduce':
      reduces += times
      reduced += times * type_bytes(instruction.type)
  return {
    'kernels': kernels,
    'moved_bytes': moved,
    'copied_bytes': copied,
    'convolutions': dict(convolutions),
    'all_reduces': reduces,
    'all_reduce_bytes': reduced,
    'cycles': dict(cycles),
  }
