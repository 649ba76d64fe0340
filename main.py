"""Meta-learns to classify from few images, and resumes what was interrupted.

  python main.py                                       # the embedded glyphs
  python main.py --config=configs/mini_5w1s.py --tag=seed1 --config.seed=1
  python main.py --config=configs/mini_5w1s.py --mode=eval
    --config.eval.{queries=15,num_steps=10,norm=support,num_tasks=10000}

Any field of a config is a flag: --config.task.ways, --config.inner.num_steps,
--config.train.num_epochs, ...; configs/default.py lists them with their
meaning, and the files beside it are the presets.
"""

import argparse
import pathlib
import sys

from maml_jax import config as config_lib
from maml_jax.errors import UserError
from maml_jax.hugepages import restart_with_huge_pages

PRESET = str(pathlib.Path(__file__).with_name('configs') / 'glyphs_5w1s.py')


class Parser(argparse.ArgumentParser):
  def error(self, message):
    raise UserError(f'{message}; see --help')


def run(argv: list[str]) -> int:
  parser = Parser(
    description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
  add, modes = parser.add_argument, ('train', 'eval', 'demo')
  add('--config', default=PRESET, help='default: configs/glyphs_5w1s.py')
  add('--mode', default='train', choices=modes, help='demo: both, and pictures')
  add('--workdir', help='default: runs/CONFIG[-TAG]')
  add('--tag', help='sets runs of one config apart')
  add('--checkpoint', help='what eval reads; default: the workdir')
  flags, overrides = parser.parse_known_args(argv)
  config = config_lib.load(flags.config, overrides)
  name = '-'.join(filter(None, (pathlib.Path(flags.config).stem, flags.tag)))
  workdir = flags.workdir or str(pathlib.Path('runs', name))
  from maml_jax import evaluate, report, train  # seconds: after all complaints
  status = train.train(config, workdir) if flags.mode != 'eval' else 0
  if flags.mode != 'train' and not status:
    evaluate.evaluate(config, flags.checkpoint or workdir)
  if flags.mode == 'demo' and not status:
    report.report(config, workdir)
  return status


if __name__ == '__main__':
  restart_with_huge_pages()
  try:
    sys.exit(run(sys.argv[1:]))
  except KeyboardInterrupt:
    sys.exit(130)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
