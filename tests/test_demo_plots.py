"""Tests of the figures of --mode=demo."""

import json
import math

import numpy as np
import pytest
import small_run
from matplotlib.figure import Figure
from PIL import Image

from maml_jax import data, report
from maml_jax.evaluation import evaluate
from maml_jax.experiment import setup
from maml_jax.experiment.task_source import eval_task_indices
from maml_jax.train import train as train_run
from maml_jax.types import Batch, Episode
from maml_jax.utils.errors import UserError


@pytest.fixture
def figures(monkeypatch):
  """Collects the figures that are saved."""
  saved = []
  savefig = Figure.savefig

  def save(self, *args, **kwargs):
    saved.append(self)
    savefig(self, *args, **kwargs)

  monkeypatch.setattr(Figure, 'savefig', save)
  return saved


def write_metrics(workdir, records):
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (workdir / 'metrics.jsonl').write_text(lines)


def train(step, accuracy=0.5):
  return {'step': step, 'split': 'train', 'loss': 1.0, 'accuracy': accuracy}


def val(step, accuracy):
  return {**train(step, accuracy), 'split': 'val', 'interval': 0.01}


def test_curves_show_all_records_and_mark_the_best(tmp_path, figures):
  records = [train(1), train(2, 0.8), val(2, 0.7), val(4, 0.6)]
  write_metrics(tmp_path, records)
  path = report.plot_curves(tmp_path)
  assert path == tmp_path / 'curves.png'
  with Image.open(path) as image:
    assert image.size == (1650, 660)
  accuracy, loss = figures[0].axes
  records_line, *_ = accuracy.lines
  np.testing.assert_allclose(records_line.get_xydata(), [(1, 0.5), (2, 0.8)])
  validation = accuracy.lines[1].get_xydata()
  np.testing.assert_allclose(validation, [(2, 0.7), (4, 0.6)])
  (band,) = accuracy.collections
  x, y = band.get_paths()[0].vertices.T
  assert (y[x == 4].min(), y[x == 4].max()) == pytest.approx((0.59, 0.61))
  star = accuracy.lines[2]
  np.testing.assert_allclose(star.get_xydata(), [(2, 0.7)])
  best = accuracy.get_title('right').replace('\xa0', ' ')
  assert best == '★ best 70.00 ± 1.00 %'
  assert loss.get_title('left') == 'Query loss'


def test_moving_average_is_centered(tmp_path, figures):
  write_metrics(tmp_path, [train(i, i / 100) for i in range(1, 101)])
  report.plot_curves(tmp_path)
  (smooth,) = figures[0].axes[0].lines
  np.testing.assert_allclose(smooth.get_xydata()[0], (3, 0.03))
  np.testing.assert_allclose(smooth.get_xydata()[-1], (98, 0.98))


@pytest.mark.parametrize(
  'record',
  [train(1), val(1, 0.5), val(1, 0.5) | {'interval': math.inf}],
  ids=['train', 'val', 'infinite interval'],
)
def test_curves_of_a_single_record(tmp_path, record):
  write_metrics(tmp_path, [record])
  assert report.plot_curves(tmp_path).is_file()


def test_run_without_metrics_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match=f'no metrics in {tmp_path}'):
    report.plot_curves(tmp_path)


def make_episode(ways, shots, queries, channels, scale=1.0):
  rng = np.random.default_rng(0)

  def batch(n):
    image = scale * rng.uniform(size=(ways * n, 28, 28, channels))
    order = rng.permutation(ways * n)
    return Batch(image[order], np.repeat(np.arange(ways), n)[order])

  return Episode(batch(shots), batch(queries))


@pytest.mark.parametrize('channels, scale', [(1, 1.0), (3, 1.0), (3, -4.0)])
def test_episode_shows_each_prediction_and_whether_it_is_correct(
  tmp_path, figures, channels, scale
):
  episode = make_episode(3, 2, 4, channels, scale)
  predicted = episode.query.targets.copy()
  predicted[0] = (predicted[0] + 1) % 3
  offset = np.arange(3) - predicted[:, None]
  logits = np.log([0.1, 0.1, 0.8])[(2 + offset) % 3]
  path = report.plot_episode(
    tmp_path / 'episode.png', episode, logits, ['alpha', 'beta', 'gamma']
  )
  with Image.open(path) as image:
    assert image.format == 'PNG'
  (axes,) = figures[0].axes
  texts = [text.get_text() for text in axes.texts]
  wrong = f'✗ {"ABC"[predicted[0]]} 80%'
  assert [text for text in texts if text[0] == '✗'] == [wrong]
  for letter in 'ABC':
    num_correct = (predicted[1:] == ord(letter) - ord('A')).sum()
    assert texts.count(f'✓ {letter} 80%') == num_correct
  assert '11 of 12 query images correct' in texts
  assert {'alpha', 'beta', 'gamma'} <= set(texts)
  styles = [patch.get_linestyle() for patch in axes.patches]
  assert (styles.count('-'), len(styles)) == (11, 12)
  assert len(axes.images) == 3 * (2 + 4)
  shown = [image.get_array() for image in axes.images]
  assert np.min(shown) >= 0 and np.max(shown) <= 1


def test_each_row_shows_the_images_of_its_class(tmp_path, figures):
  label = np.array([2, 0, 1])
  image = np.broadcast_to(label[:, None, None, None] / 2, (3, 4, 4, 1))
  episode = Episode(Batch(image, label), Batch(image, label))
  report.plot_episode(tmp_path / 'e.png', episode, np.eye(3)[label])
  for shown in figures[0].axes[0].images:
    row = round((shown.get_extent()[3] - 0.03) / 1.34)
    np.testing.assert_allclose(shown.get_array(), row / 2)


def test_number_of_images_per_class_is_limited(tmp_path, figures):
  episode = make_episode(2, 12, 15, 1)
  logits = np.eye(2)[episode.query.targets]
  report.plot_episode(tmp_path / 'e.png', episode, logits)
  axes = figures[0].axes[0]
  assert len(axes.images) == 2 * (10 + 10)
  texts = [text.get_text() for text in axes.texts]
  assert '30 of 30 query images correct' in texts
  assert any('the first 10 of each class' in text for text in texts)


@pytest.mark.slow
def test_demo_draws_the_first_task_of_the_evaluation(
  tmp_path, monkeypatch, capsys, figures
):
  small_run.use(monkeypatch, tmp_path / 'cache')
  names = [f'class {c}' for c in range(8)]
  monkeypatch.setattr(data, 'class_names', lambda *_: names)
  config = small_run.config(train__num_epochs=1)
  train_run(config, tmp_path)
  evaluate.evaluate(config, tmp_path)
  report.draw_demo(config, tmp_path)

  (npz,) = (tmp_path / 'eval').glob('*.npz')
  num_correct = round(np.load(npz)['accuracy'][0] * 3 * 2)
  texts = [text.get_text() for text in figures[-1].axes[0].texts]
  assert f'{num_correct} of 6 query images correct' in texts
  dataset = small_run.dataset('test')
  phase = setup.eval_phase(config)
  (positions,), _ = eval_task_indices(dataset, phase, 1)
  for first in positions[:, 0]:
    rows = zip(dataset.index, dataset.size, strict=True)
    (true_class,) = (c for c, (row, n) in enumerate(rows) if first in row[:n])
    assert names[true_class] in texts
  out = capsys.readouterr().out
  for name in ('checkpoints/best', 'curves.png', 'episode.png'):
    assert str(tmp_path / name) in out
