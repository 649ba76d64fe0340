"""Fields and values of configs that earlier versions wrote."""

from collections.abc import Mapping
from typing import Any

__all__ = [
  'ADDED_FIELDS',
  'IMPLIED_VALUES',
  'RENAMED_AUGMENTATIONS',
  'RENAMED_FIELDS',
  'REPLACED_FIELDS',
  'upgrade',
]

# Values of the augmentation fields that were renamed.
RENAMED_AUGMENTATIONS = {
  'crop': 'random_crop',
  'color': 'color_jitter',
  'resize': 'random_resized_crop',
  'enlarge': 'resize_center_crop',
}
# Fields that were renamed, with their old names, for older configs.
RENAMED_FIELDS = {
  'train.num_tasks': 'train.meta_batch_size',
  'train.chunk': 'train.tasks_per_chunk',
  'train.start': 'train.init_from',
  'outer.clip': 'outer.clip_value',
}
# Fields that were replaced, with the new field and its value for each old one.
REPLACED_FIELDS = {
  'inner.first_order': (
    'outer.gradient',
    {False: 'exact', True: 'first_order'},
  ),
  'inner.reset_classifier': ('inner.head', {False: 'learned', True: 'zero'}),
}
# Fields that were added; older configs imply the default.
ADDED_FIELDS = tuple(
  f'{section}.{name}'
  for section, names in {
    'model': 'normalize_features context_size',
    'inner': 'optimizer b1 b2 eps eps_root proximal head zero learn_lr '
    'lr_bounds per_step precondition rule class_weights unroll',
    'outer': 'gradient first_order_epochs loss_steps loss_epochs temperature '
    'cg_steps cg_damping lr_scale',
    'train': 'init_from objective',
    'pretrain': 'batch_size head label_smoothing',
    'eval': 'data data_root baselines grid grid_norms grid_queries grid_steps',
  }.items()
  for name in names.split()
)
# The same, with the value that older configs imply.
IMPLIED_VALUES = {'eval.curve_tasks': 0}


def upgrade(tree: dict[str, Any], defaults: Mapping[str, Any]) -> None:
  """Renames and adds fields so that an older config is a current one.

  Args:
    tree: the config as a nested dict, changed in place.
    defaults: the default of each current field, such as {'task.ways': 5}.
  """
  for old, new in RENAMED_FIELDS.items():
    section, name = old.split('.')
    if name in tree.get(section, {}):
      tree[section].setdefault(new.split('.')[1], tree[section].pop(name))
  for section in ('data', 'val', 'eval'):
    fields = tree.get(section, {})
    for name in ('augment_support', 'augment_query'):
      if isinstance(fields.get(name), str):
        fields[name] = RENAMED_AUGMENTATIONS.get(fields[name], fields[name])
  for old, (new, values) in REPLACED_FIELDS.items():
    (section, name), (new_section, new_name) = old.split('.'), new.split('.')
    if name in tree.get(section, {}) and new_section in tree:
      value = values.get(tree[section].pop(name))
      tree[new_section].setdefault(new_name, value)
  if 'train' in tree:
    pretrain = tree.setdefault('pretrain', {})  # a new section
    scale = pretrain.pop('cosine_scale', None)  # now model.temperature
    if scale and tree['train'].get('objective') == 'classes':
      tree['model']['temperature'] = scale
  added = {field: defaults[field] for field in ADDED_FIELDS} | IMPLIED_VALUES
  for field, value in added.items():
    section, name = field.split('.')
    if section in tree:
      tree[section].setdefault(name, value)
