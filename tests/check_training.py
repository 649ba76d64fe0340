"""Trains every method on glyphs: `make test-training`, not part of `make test`.

Each must reach 80 % on 5-way 1-shot tasks of unseen scripts, with one budget
and inner rates chosen on validation tasks; docs/methods.md lists the results.
"""

# The budget of all methods.
COMMON = (
  '--data.name=glyphs',
  '--task.queries=5',
  '--train.meta_batch_size=16',
  '--train.steps_per_epoch=50',
  '--train.num_epochs=8',
  '--val.num_tasks=100',
  '--val.queries=5',
  '--eval.num_tasks=600',
  '--eval.queries=5',
  '--eval.curve_tasks=0',
)
