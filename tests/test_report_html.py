"""The page of --mode=report: its arithmetic, what it reads, what it shows."""

import base64
import html.parser
import io
import json
import os
import re
import shutil

import fake_results
import numpy as np
import pytest
import small_run
from PIL import Image

from maml_jax import cli, data, report
from maml_jax import config as config_lib
from maml_jax.evaluation.statistics import mean_interval, prefix_difference
from maml_jax.experiment import setup
from maml_jax.experiment.task_source import eval_task_indices
from maml_jax.report import (
  episodes,
  figure_writer,
  figures,
  formatting,
  markup,
  runs,
  statistics,
  style,
)
from maml_jax.utils.errors import UserError

NAMES = [f'class <{c}>' for c in range(8)]
PRESET = str(small_run.PRESET)
VOID = {'meta', 'link', 'br', 'hr', 'img', 'input'}


class Page(html.parser.HTMLParser):
  """A page taken apart; complains about tags that do not match."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.words, self.open = [], [], []
    self.feed(text)
    assert not self.open
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    if 'style' not in self.open:
      self.words.append(text)

  def all(self, tag, class_=None):
    return [
      attributes
      for name, attributes in self.elements
      if name == tag and class_ in (None, *attributes.get('class', '').split())
    ]


def plain(text):
  """As `Page` has it: all spaces are alike."""
  return text.replace('\xa0', ' ')


def rows_of(page_text, table_class):
  """The rows of the first table of a class: lists of the texts of cells."""
  body = re.search(rf'<table class="{table_class}">.*?</table>', page_text)[0]
  cells = re.compile(r'<t([dh])([^>]*)>(.*?)</t\1>')
  return [
    [
      (attributes, re.sub('<[^>]*>', '|', cell))
      for _, attributes, cell in cells.findall(row)
    ]
    for row in re.findall('<tr>.*?</tr>', body)
  ]


@pytest.fixture(autouse=True)
def prepared(monkeypatch, tmp_path):
  small_run.use(monkeypatch, tmp_path / 'cache')
  monkeypatch.setattr(data, 'class_names', lambda *_: NAMES)


@pytest.fixture(scope='module')
def config():
  return small_run.config(eval__num_steps=2)


@pytest.fixture(scope='module')
def seeds(tmp_path_factory, config):
  """Three workdirs that differ in their seed."""
  folder = tmp_path_factory.mktemp('seeds')
  for seed in range(3):
    path = folder / f'run{seed}'
    fake_results.write_run(path, config, small_run.dataset('test'), 30, seed)
  return [folder / f'run{seed}' for seed in range(3)]


@pytest.fixture(scope='module')
def single(seeds, tmp_path_factory):
  """The page of one of them, and its text."""
  with pytest.MonkeyPatch.context() as patch:
    small_run.use(patch, tmp_path_factory.mktemp('cache'))
    patch.setattr(data, 'class_names', lambda *_: NAMES)
    path = tmp_path_factory.mktemp('single') / 'page.html'
    report.write_report(path, seeds[:1])
  return path


def facts(workdir, name='tasks'):
  return json.loads((workdir / 'eval' / f'{name}.json').read_text())


def arrays(workdir, name='tasks'):
  return np.load(workdir / 'eval' / f'{name}.npz')


def copy(seeds, tmp_path, seed=0):
  return shutil.copytree(seeds[seed], tmp_path / f'copy{seed}')


def change(workdir, name='tasks', drop=(), **new):
  path = workdir / 'eval' / f'{name}.json'
  old = json.loads(path.read_text())
  kept = {key: value for key, value in old.items() if key not in drop}
  path.write_text(json.dumps(kept | new))


def page(tmp_path, workdirs, **kw):
  """A page without PNGs, which take time."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figure_writer.FigureWriter, 'keep', lambda *_: None)
    path = report.write_report(tmp_path / 'page.html', workdirs, **kw)
  return Page(path.read_text())


# Arithmetic


@pytest.mark.parametrize('queries', [1, 5, 25, 26, 75, 300])
def test_each_bar_holds_equally_many_accuracies(queries):
  edges = statistics.accuracy_bins(queries)
  possible = np.arange(queries + 1) / queries
  count, _ = np.histogram(possible, edges)
  assert count.sum() == queries + 1 and len(count) <= 26
  assert len({*count[:-1]}) <= 1 and 0 < count[-1] <= count[0]


def test_class_accuracy_and_confusion_equal_plain_loops():
  rng = np.random.default_rng(0)
  classes = np.stack([rng.permutation(6)[:3] for _ in range(40)])
  predicted = rng.integers(0, 3, (40, 12)).astype(np.uint8)
  answered, offered = np.zeros((6, 6)), np.zeros((6, 6))
  shares = {c: [] for c in range(6)}
  for task, answers in zip(classes, predicted, strict=True):
    for way, owner in enumerate(task):
      own = answers[4 * way : 4 * way + 4]
      shares[owner].append(np.mean(own == way))
      for other, c in enumerate(task):
        answered[owner, c] += np.sum(own == other)
        offered[owner, c] += 4
  result = statistics.confusion(predicted, classes, 6)
  np.testing.assert_array_equal(result, (answered, offered))
  for c, (mean, half, count) in statistics.class_accuracy(
    predicted, classes
  ).items():
    assert count == len(shares[c])
    np.testing.assert_allclose((mean, half), mean_interval(shares[c]))


def test_best_and_worst_tasks():
  accuracy, loss = [0.5, 1.0, 0.2, 1.0, 0.2], [1.0, 0.3, 2.0, 0.1, 3.0]
  assert statistics.best_and_worst(accuracy, loss, 2) == ([3, 1], [4, 2])
  assert statistics.best_and_worst(accuracy[:3], loss[:3], 2) == ([1], [2])


def test_over_seeds():
  assert statistics.over_seeds([0.5], [0.1]) == (0.5, 0.1)
  values = [0.5, 0.6, 0.65]
  assert statistics.over_seeds(values, [9, 9, 9]) == mean_interval(values)


def test_words():
  assert (
    formatting.format_number('accuracy', 0.487, 0.0184)
    == '48.70 ±\xa01.84\xa0%'
  )
  assert formatting.format_number('loss', 0.7344, 0.012) == '0.734 ±\xa00.012'
  assert (
    formatting.format_difference('accuracy', 0.012, 0.003) == '+1.20 ±\xa00.30'
  )
  assert formatting.format_difference('loss', -0.5, None) == '−0.500'
  assert (
    formatting.format_share(0.2) == '20\xa0%'
    and formatting.format_share(0) == '0\xa0%'
  )
  assert formatting.pluralize(1, 'class') == '1 class'
  assert formatting.pluralize(10_000, 'task') == '10,000 tasks'


# Reading


def test_what_is_no_run_is_said_in_one_line(tmp_path):
  with pytest.raises(UserError, match='no such workdir: .*none'):
    report.write_report(None, [tmp_path / 'none'])
  with pytest.raises(UserError, match='no run in .*: it holds neither') as e:
    report.write_report(None, [tmp_path])
  assert '\n' not in str(e.value)
  with pytest.raises(UserError, match='at least one WORKDIR'):
    report.write_report(None, [])


def test_runs_that_differ_in_their_seed_alone_are_one(seeds, tmp_path, config):
  other = tmp_path / 'other'
  fields = {'inner__encoder_lr': 0.2, 'eval__num_steps': 2}
  fake_results.write_run(
    other, small_run.config(**fields), small_run.dataset('test'), 5
  )
  again = copy(seeds, tmp_path)  # the same seed is no second one
  groups = runs.group_runs(
    [runs.read_run(p) for p in (*seeds[::-1], other, again)]
  )
  assert [len(group.runs) for group in groups] == [3, 1, 1]
  assert [run.seed for run in groups[0].runs] == [0, 1, 2]
  assert [g.name for g in groups] == ['run (3 seeds)', 'other', 'copy0']
  assert runs.differing_fields(groups) == {'inner.encoder_lr': [0.1, 0.2, 0.1]}
  (kind,) = groups[0].measured
  assert [e.facts['seed'] for e in kind.evaluations] == [0, 1, 2]


def test_runs_of_one_name_are_told_apart(seeds, tmp_path):
  paths = [shutil.copytree(seeds[0], tmp_path / name / 'run') for name in 'ab']
  groups = runs.group_runs([runs.read_run(path) for path in paths])
  assert [group.name for group in groups] == ['a/run', 'b/run']


@pytest.mark.parametrize(
  'given, name',
  [
    (('x-seed0', 'x-seed1'), 'x (2 seeds)'),
    (('mini', 'mini-seed1'), 'mini (2 seeds)'),
    (('0', '1'), '0 (2 seeds)'),
    (('a1', 'a2'), 'a (2 seeds)'),
  ],
)
def test_names_of_seeds(tmp_path, given, name):
  for seed, workdir in enumerate(given):
    path = tmp_path / workdir
    path.mkdir()
    fake_results.write_metrics(path)
    config = small_run.config(seed=seed)
    (path / 'config.json').write_text(config_lib.to_json(config))
  (group,) = runs.group_runs(
    [runs.read_run(tmp_path / workdir) for workdir in given]
  )
  assert group.name == name


def test_evaluation_shown_is_the_one_that_all_have(seeds, tmp_path, config):
  paths = [copy(seeds, tmp_path, seed) for seed in (0, 1)]
  more = small_run.config(eval__num_steps=2, eval__queries=1)
  fake_results.write_tasks(
    paths[0], more, small_run.dataset('test'), 12, name='newer'
  )
  os.utime(paths[0] / 'eval' / 'newer.json', (2e9, 2e9))
  (group,) = runs.group_runs([runs.read_run(path) for path in paths])
  newest, shared = group.measured
  assert newest.facts['queries'] == 1 and newest.name.endswith('(1 of 2 seeds)')
  assert runs.main_evaluations([group]) == [shared]


def test_older_evaluations_are_shown_as_far_as_they_go(seeds, tmp_path):
  workdir = copy(seeds, tmp_path)
  (workdir / 'eval' / 'grid.json').unlink()
  change(workdir, drop=('kind', 'curve', 'baselines', 'at_chance', 'commit'))
  kept = {name: arrays(workdir)[name] for name in ('accuracy', 'loss')}
  np.savez(workdir / 'eval' / 'tasks.npz', **kept)
  found = page(tmp_path, [workdir])
  for flags in ('--eval.grid', '--eval.baselines', '--eval.curve_tasks=100'):
    command = f'python main.py --mode=eval --workdir={workdir}'
    assert f'{command} --checkpoint=runs/x/checkpoints/best/200 {flags}' in (
      found.text
    )
  for heading in ('Hard classes', 'Adaptation, step by step', 'Norm modes'):
    assert heading not in found.text
  assert 'Accuracy of single tasks' in found.text


def test_damaged_files_are_named_and_passed_over(seeds, tmp_path):
  workdir = copy(seeds, tmp_path)
  for i, content in enumerate(('', '{', '[]', '{"kind": "x"}', '{}')):
    (workdir / 'eval' / f'bad{i}.json').write_text(content)
  (workdir / 'eval' / 'grid.npz').unlink()
  (workdir / 'eval' / 'tasks.npz').write_bytes(b'PK\x03\x04 cut')
  (workdir / 'config.json').write_text('{')
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('3\n{"step": 4}\n{"st')
  found = page(tmp_path, [workdir])
  bad = [f'bad{i}.json' for i in range(5)]
  for name in (*bad, 'grid.npz', 'tasks.npz'):
    assert f'{workdir}/eval/{name}' in found.text


def test_a_run_without_evaluation_says_how_to_make_one(tmp_path):
  fake_results.write_metrics(tmp_path)
  found = page(tmp_path, [tmp_path])
  command = f'python main.py --mode=eval --workdir={tmp_path}'
  assert f'Not evaluated yet. {command}' in found.text
  assert 'Learning curves' in found.text


# The page


def test_page_needs_nothing_else(single):
  text = single.read_text()
  assert len(text) < 2_000_000
  found = Page(text)
  ids = [a['id'] for _, a in found.elements if 'id' in a]
  assert len(ids) == len({*ids})
  for tag, attributes in found.elements:
    assert tag not in ('script', 'link', 'iframe', 'img')
    for name, value in attributes.items():
      if name in ('href', 'xlink:href'):
        assert value.startswith('data:image/') or value[1:] in ids, value
      for url in re.findall(r'url\((.*?)\)', value or ''):
        assert url.startswith(('data:image/', '#')), url[:40]
  assert not re.search(r'@import|url\((?!data:|#)', text)


def test_pictures_have_words_and_lie_beside_the_page(single):
  found = Page(single.read_text())
  pictures = found.all('svg')
  assert len(pictures) == 8
  assert all(a['role'] == 'img' and a['aria-label'] for a in pictures)
  assert all(a['aria-label'] for a in found.all('i'))
  folder = single.with_name('page_pictures')
  assert {path.name for path in folder.iterdir()} == {
    f'{name}.png'
    for name in (
      'adaptation_accuracy',
      'adaptation_loss',
      'baselines_0',
      'confusion_0',
      'grid_0_0',
      'histogram_accuracy',
      'learning_accuracy',
      'learning_loss',
      'running_accuracy',
      'task_0_best1',
      'task_0_best2',
      'task_0_worst1',
      'task_0_worst2',
    )
  }


def test_pictures_follow_the_scheme_of_the_reader(single):
  text = single.read_text()
  used = {*re.findall(r'var\(--([a-z]+\d?)\)', text)}
  assert {'ink', 'muted', 'line', 'series0'} <= used
  assert used <= {*style.PALETTE, 'own', 'sprite', 'size', 'heat'}
  for svg in re.findall('<svg.*?</svg>', text, re.DOTALL):
    without_images = re.sub(r'"data:.*?"', '', svg, flags=re.DOTALL)
    assert not re.findall('#[0-9a-f]{6}', without_images)
  light, dark = style.variables(0), style.variables(1)
  assert light in text and dark in text.partition('prefers-color-scheme')[2]


def luminance(color):
  channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  linear = np.where(
    channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
  )
  return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize('scheme', [0, 1], ids=['light', 'dark'])
def test_contrast_is_that_of_the_accessibility_guidelines(scheme):
  """WCAG 2.1: 4.5 for text, 3 for lines, against page and cards."""
  colors = {name: pair[scheme] for name, pair in style.PALETTE.items()}
  for ground in ('page', 'card'):
    for name, color in colors.items():
      if name in ('page', 'card', 'line'):
        continue
      pair = sorted(map(luminance, (color, colors[ground])))
      ratio = (pair[1] + 0.05) / (pair[0] + 0.05)
      least = 4.5 if name in ('ink', 'muted') else 3
      assert ratio >= least, (name, ground, ratio)


def test_lines_differ_from_each_other():
  drawn = [style.series(number) for number in range(24)]
  assert len({*drawn}) == 24


def test_summary_says_in_words_what_was_measured(single, seeds):
  said, told = facts(seeds[0]), Page(single.read_text()).text
  mean, half = 100 * said['accuracy'], 100 * said['interval']
  assert f'{mean:.2f} ± {half:.2f} %' in told
  assert '95 % interval over 30 tasks' in told
  assert (
    'Measured on 30 tasks of glyphs test, 3-way 1-shot, 2 query images '
    'per class, 2 inner steps, norm batch.'
  ) in told
  assert 'transductive the query images of a task are answered tog' in told
  assert f'Median of tasks {100 * said["median"]:.2f} %' in told
  assert 'or below chance (33.3 % right); guessing puts ' in told
  assert (
    'Checkpoint of step 200, seed 0, float32, 2 x cpu, maml_jax 0.1.0 '
    '(0123456789+), jax 0.12.0.'
  ) in told


def test_grid_shows_every_cell_and_its_kind(single, seeds):
  said = facts(seeds[0], 'grid')
  _, *rows = rows_of(single.read_text(), 'heat')
  cells = iter(said['cells'])
  for label, *shown in rows:
    for steps, (attributes, text) in zip((0, 1, 5, 10), shown, strict=True):
      cell = next(cells)
      mean, half = (f'{100 * cell[k]:.2f}' for k in ('accuracy', 'interval'))
      difference = formatting.format_difference(
        'accuracy', cell['difference'], cell['difference_interval']
      )
      key = cell['norm'], cell['queries'], steps
      assert cell['num_steps'] == steps
      assert ('base' in attributes) == (key == ('batch', 15, 5))
      if key == ('batch', 15, 5):
        difference = 'base'
      assert text.split('|')[1::2] == [mean, f' ±\xa0{half}', difference]
    kind = 'transductive' if key[0] == 'batch' else 'inductive'
    queries = 'one query' if key[1] == 1 else f'{key[1]} queries'
    assert label[1] == f'{key[0]}|{queries}, {kind}|'
  assert next(cells, None) is None


def test_stronger_colours_are_higher_accuracies(single, seeds):
  _, *rows = rows_of(single.read_text(), 'heat')
  heat = [
    int(re.search(r'--heat:(\d+)', attributes)[1])
    for _, *shown in rows
    for attributes, _ in shown
  ]
  accuracy = [cell['accuracy'] for cell in facts(seeds[0], 'grid')['cells']]
  order = np.argsort(accuracy)
  assert (np.diff(np.array(heat)[order]) >= 0).all()
  assert (min(heat), max(heat)) == (4, 60)


def test_seeds_are_one_number_with_the_interval_over_them(seeds, tmp_path):
  found = page(tmp_path, seeds)
  values = [facts(path)['accuracy'] for path in seeds]
  expected = formatting.format_number('accuracy', *mean_interval(values))
  assert plain(expected) in found.text
  assert '95 % interval over 3 seeds, each on 30 tasks' in found.text
  grids = [facts(path, 'grid')['cells'][0] for path in seeds]
  apart = mean_interval([cell['difference'] for cell in grids])
  assert plain(formatting.format_difference('accuracy', *apart)) in found.text
  assert len(found.all('article')) == 1
  assert found.text.startswith('run (3 seeds)')


def test_first_tasks_are_held_against_all(seeds, tmp_path, config):
  fake_results.write_tasks(tmp_path, config, small_run.dataset('test'), 150)
  told = page(tmp_path, [tmp_path]).text
  values = arrays(tmp_path)['accuracy']
  apart, luck = prefix_difference(values, 100)
  row = [
    formatting.format_number('accuracy', *mean_interval(values[:100])),
    formatting.format_difference('accuracy', apart, None),
    formatting.format_margin('accuracy', luck),
  ]
  assert f'100 {plain(" ".join(row))} 150 ' in told
  deviation = formatting.format_number('accuracy', values.std(ddof=1))
  assert f'standard deviation of {plain(deviation)}' in told


def test_runs_are_compared_task_by_task(seeds, tmp_path):
  first, second = (copy(seeds, tmp_path, seed) for seed in (0, 1))
  for workdir in (first, second):
    (workdir / 'metrics.jsonl').unlink()
    (workdir / 'eval' / 'grid.json').unlink()
  config = config_lib.from_json((second / 'config.json').read_text())
  with config.unlocked():
    config.inner.first_order = True
  (second / 'config.json').write_text(config_lib.to_json(config))
  told = page(tmp_path, [first, second]).text
  a, b = (arrays(workdir)['accuracy'] for workdir in (first, second))
  row = [
    formatting.format_number('accuracy', *mean_interval(b)),
    formatting.format_difference('accuracy', *mean_interval(b - a)),
  ]
  assert f'copy1 transductive {plain(" ".join(row))} 30' in told
  assert 'inner.first_order False True' in told


def test_baselines_are_shown_with_their_paired_differences(single, seeds):
  told = Page(single.read_text()).text
  for baseline in facts(seeds[0])['baselines']:
    own = baseline['accuracy'], baseline['interval']
    apart = baseline['difference'], baseline['difference_interval']
    assert plain(formatting.format_number('accuracy', *own)) in told
    assert plain(formatting.format_difference('accuracy', *apart)) in told
    assert markup.escape(baseline['about']) in single.read_text()


def test_names_and_titles_are_text_not_markup(tmp_path, single):
  fake_results.write_metrics(tmp_path)
  found = page(
    tmp_path,
    [tmp_path],
    title='a < b & "c"',
    nav='Claims',
    extra_html='<p id="mine">kept <b>as</b> it is</p>',
  )
  assert 'a < b & "c"' in found.text
  assert 'kept as it is' in found.text and 'Claims' in found.text
  order = [a['id'] for _, a in found.elements if 'id' in a]
  assert order.index('mine') < order.index('part1')
  assert 'class <1>' in Page(single.read_text()).text


# Tasks and classes


def test_tasks_shown_are_the_best_and_the_worst_with_their_answers(
  single, seeds, config
):
  known = arrays(seeds[0])
  order = np.lexsort((known['loss'], -known['accuracy']))
  phase = setup.eval_phase(config)
  dataset = small_run.dataset('test')
  positions, _ = eval_task_indices(dataset, phase, 30)
  text = single.read_text()
  shown = re.findall('<figure class="episode".*?</figure>', text, re.DOTALL)
  assert len(shown) == 4
  for html_, task in zip(shown, order[[0, 1, -1, -2]], strict=True):
    assert f'task {task + 1}<' in html_
    marks = re.findall('tile (right|wrong)', html_)
    label = np.repeat(np.arange(3), 2)
    right = known['predicted'][task] == label
    assert marks == ['right' if r else 'wrong' for r in right]
    answers = re.findall('[✓✗] ([A-Z])<', html_)
    assert answers == [chr(ord('A') + p) for p in known['predicted'][task]]
    for c in known['classes'][task]:
      assert f'class &lt;{c}&gt;:' in html_
    code = re.search('base64,(.*?)\\)', html_)[1]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))[..., 0]
    tiles = sheet.reshape(3, 28, 3, 28).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(
      tiles, dataset.images[positions[task]][..., 0]
    )


def test_sprite_places():
  tiles = np.zeros((3, 5, 2, 2, 1), np.uint8)
  assert '--size:500% 300%' in episodes.sprite_style(tiles)
  html_ = episodes.tile((1, 4), (3, 5), 'an "alt"')
  assert 'background-position:100% 50%' in html_
  assert 'aria-label="an &quot;alt&quot;"' in html_
  assert 'position:0% 0%' in episodes.tile((0, 0), (1, 1), '')


def test_hardest_classes_are_those_answered_worst(single, seeds):
  known = arrays(seeds[0])
  label = np.repeat(np.arange(3), 2)
  right = (known['predicted'] == label).reshape(30, 3, 2).mean(-1)
  means = {c: right[known['classes'] == c].mean() for c in range(8)}
  ranked = sorted(means, key=means.get)
  section = single.read_text().partition('Hard classes')[2]
  section = section.partition('</table>')[0]
  assert re.findall(r'aria-label="class &lt;(\d)&gt;"', section) == [
    str(c) for c in ranked
  ]


def test_data_that_are_not_here_are_said_to_be_so(seeds, tmp_path, monkeypatch):
  def missing(*_):
    raise UserError('glyphs is not prepared: there is no X\nprepare it with')

  monkeypatch.setattr(data, 'class_names', missing)
  found = page(tmp_path, seeds[:1])
  assert 'no names of classes: glyphs is not prepared' in found.text
  assert 'prepare it with' not in found.text
  assert 'class 3' in found.text and not found.all('i')


def test_tasks_of_other_data_are_not_shown(seeds, tmp_path):
  workdir = copy(seeds, tmp_path)
  known = dict(arrays(workdir))
  known['classes'] = (known['classes'] + 1) % 8
  np.savez(workdir / 'eval' / 'tasks.npz', **known)
  found = page(tmp_path, [workdir])
  assert 'not those that were measured' in found.text
  assert not found.all('figure', 'episode')


def test_regression_has_losses_and_no_chance(tmp_path):
  sinusoid = str(small_run.PRESET.with_name('sinusoid.py'))
  config = config_lib.load(sinusoid)
  fake_results.write_metrics(tmp_path, accuracy=False)
  fake_results.write_regression(tmp_path, config)
  found = page(tmp_path, [tmp_path])
  said = facts(tmp_path)
  shown = formatting.format_number('loss', said['loss'], said['interval'])
  assert plain(shown) in found.text
  assert 'Loss of single tasks' in found.text
  assert 'no fitted curves: no best checkpoint' in found.text
  for word in (
    'chance,',
    'below chance',
    'inductive ',
    'Hard classes',
    '--eval.grid',
  ):
    assert word not in found.text


# Figures


def test_band_of_seeds_goes_from_the_lowest_to_the_highest(seeds):
  (group,) = runs.group_runs([runs.read_run(path) for path in seeds])
  figure = figures.learning([group], 'accuracy')
  (axes,) = figure.axes
  (band,) = axes.collections
  values = np.array(
    [
      [r['accuracy'] for r in run.records if r['split'] == 'val']
      for run in group.runs
    ]
  )
  x, y = band.get_paths()[0].vertices.T
  for step, low, high in zip(
    range(50, 251, 50), values.min(0), values.max(0), strict=True
  ):
    np.testing.assert_allclose(
      (y[x == step].min(), y[x == step].max()), (low, high)
    )
  mean = next(line for line in axes.lines if line.get_marker() == 'o')
  np.testing.assert_allclose(mean.get_ydata(), values.mean(0))


def test_band_of_one_seed_is_its_interval(seeds):
  (group,) = runs.group_runs([runs.read_run(seeds[0])])
  (band,) = figures.learning([group], 'accuracy').axes[0].collections
  x, y = band.get_paths()[0].vertices.T
  assert np.ptp(y[x == 100]) == pytest.approx(2 * 0.02)


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path):
  fake_results.write_metrics(tmp_path, num_epochs=800)
  (group,) = runs.group_runs([runs.read_run(tmp_path)])
  for line in figures.learning([group], 'loss').axes[0].lines:
    x = line.get_xdata()
    assert len(x) <= 300
    if len(x) > 1:
      assert x[-1] >= 0.98 * 40_000


def test_histogram_holds_all_tasks_and_the_line_of_chance(seeds):
  (group,) = runs.group_runs([runs.read_run(seeds[0])])
  (axes,) = figures.histogram(runs.main_evaluations([group])).axes
  outline = axes.patches[0].get_data()
  assert outline.values.sum() == pytest.approx(1)
  accuracy = arrays(seeds[0])['accuracy']
  for share, low, high in zip(
    outline.values, outline.edges, outline.edges[1:], strict=False
  ):
    assert share == np.mean((low <= accuracy) & (accuracy < high))
  (chance,) = axes.lines
  assert chance.get_xdata()[0] == pytest.approx(1 / 3)


def test_adaptation_shows_support_and_query_with_intervals(seeds):
  (group,) = runs.group_runs([runs.read_run(seeds[0])])
  curve = facts(seeds[0])['curve']
  for name in ('accuracy', 'loss'):
    (axes,) = figures.adaptation(runs.main_evaluations([group]), name).axes
    query, support = axes.lines[:2]
    np.testing.assert_allclose(query.get_ydata(), curve['query'][name])
    np.testing.assert_allclose(support.get_ydata(), curve['support'][name])
    x, y = axes.collections[0].get_paths()[0].vertices.T
    tasks = arrays(seeds[0])[f'curve_query_{name}']
    for step in range(3):
      _, half = mean_interval(tasks[:, step])
      assert np.ptp(y[x == step]) == pytest.approx(2 * half)


# The command line


def test_command_line(tmp_path, capsys):
  workdirs = [tmp_path / name for name in 'ab']
  for workdir in workdirs:
    workdir.mkdir()
    fake_results.write_metrics(workdir)
  output = tmp_path / 'new' / 'both.html'
  flags = ['--mode=report', *map(str, workdirs), f'--output={output}']
  assert cli.run(flags) == 0
  assert capsys.readouterr().out == f'{output}\n'
  assert '<title>a, b</title>' in output.read_text()
  with pytest.raises(UserError, match='at least one WORKDIR'):
    cli.run(['--mode=report'])


def test_a_single_run_has_its_page_in_its_workdir(tmp_path):
  fake_results.write_metrics(tmp_path)
  assert cli.run(['--mode=report', str(tmp_path)]) == 0
  assert (tmp_path / 'report.html').is_file()
  assert (tmp_path / 'report_pictures' / 'learning_loss.png').is_file()


def test_a_page_that_cannot_be_written(seeds, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write .*page.html: '):
    report.write_report(tmp_path / 'file' / 'page.html', seeds[:1])
