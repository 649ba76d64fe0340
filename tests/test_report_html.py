"""Tests of the HTML report: its statistics, reading of runs, and content."""

import base64
import html.parser
import io
import json
import os
import re
import shutil

import browser
import fake_results
import numpy as np
import pytest
import small_run
from markupsafe import Markup
from PIL import Image

from maml_jax import cli, data, report
from maml_jax import config as config_lib
from maml_jax.evaluation.statistics import (
  accuracy_bins,
  best_and_worst_tasks,
  class_accuracy,
  combine_seeds,
  confusion_counts,
  mean_interval,
  prefix_difference,
)
from maml_jax.experiment import checkpoint, setup
from maml_jax.experiment.formatting import describe_setup, pluralize
from maml_jax.experiment.task_source import eval_task_indices
from maml_jax.report import (
  figures,
  formatting,
  page,
  run_groups,
  runs,
  style,
  tables,
)
from maml_jax.train import train
from maml_jax.utils.errors import UserError

CLASS_NAMES = [f'class <{c}>' for c in range(8)]
VOID_ELEMENTS = {'meta', 'link', 'br', 'hr', 'img', 'input'}


class Page(html.parser.HTMLParser):
  """Parses a page; fails if opening and closing tags do not match.

  Attributes:
    elements: (tag, attributes) of all elements.
    text: the visible text, with single spaces.
  """

  def __init__(self, text):
    super().__init__()
    self.elements, self._words, self._open = [], [], []
    self.feed(text)
    assert not self._open
    self.text = ' '.join(' '.join(self._words).split())

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in VOID_ELEMENTS:
      self._open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, text):
    if 'style' not in self._open:
      self._words.append(text)

  def find_all(self, tag, class_=None):
    """Returns the attributes of all elements with a tag and a class."""
    return [
      attributes
      for name, attributes in self.elements
      if name == tag and class_ in (None, *attributes.get('class', '').split())
    ]


def normalize_spaces(text):
  """Replaces no-break spaces, as `Page.text` does."""
  return text.replace('\xa0', ' ')


def rows_of(page_text, table_class):
  """Returns (attributes, text) of the cells of the first table of a class."""
  body = re.search(
    rf'<table class="{table_class}">.*?</table>', page_text, re.S
  )[0]
  cells = re.compile(r'<t([dh])([^>]*)>(.*?)</t\1>')
  return [
    [
      (attributes, re.sub('<[^>]*>', '|', cell))
      for _, attributes, cell in cells.findall(row)
    ]
    for row in re.findall('<tr>.*?</tr>', body, re.DOTALL)
  ]


@pytest.fixture(autouse=True)
def small_data(monkeypatch, tmp_path):
  small_run.use(monkeypatch, tmp_path / 'cache')
  monkeypatch.setattr(data, 'class_names', lambda *_: CLASS_NAMES)


@pytest.fixture(scope='module')
def config():
  return small_run.config(eval__num_steps=2)


@pytest.fixture(scope='module')
def seeds(tmp_path_factory, config):
  """Three workdirs that differ only in the seed."""
  folder = tmp_path_factory.mktemp('seeds')
  for seed in range(3):
    path = folder / f'run{seed}'
    fake_results.write_run(path, config, small_run.dataset('test'), 30, seed)
  return [folder / f'run{seed}' for seed in range(3)]


@pytest.fixture(scope='module')
def single_page(seeds, tmp_path_factory):
  """The path of the report of one of these workdirs."""
  with pytest.MonkeyPatch.context() as patch:
    small_run.use(patch, tmp_path_factory.mktemp('cache'))
    patch.setattr(data, 'class_names', lambda *_: CLASS_NAMES)
    path = tmp_path_factory.mktemp('single') / 'page.html'
    report.write_report(path, seeds[:1])
  return path


def read_result(workdir, name='tasks'):
  return json.loads((workdir / 'eval' / f'{name}.json').read_text())


def read_arrays(workdir, name='tasks'):
  return np.load(workdir / 'eval' / f'{name}.npz')


def copy_run(seeds, tmp_path, seed=0):
  return shutil.copytree(seeds[seed], tmp_path / f'copy{seed}')


def edit_result(workdir, name='tasks', drop=(), **new):
  """Removes and replaces fields of a JSON result."""
  path = workdir / 'eval' / f'{name}.json'
  old = json.loads(path.read_text())
  kept = {key: value for key, value in old.items() if key not in drop}
  path.write_text(json.dumps(kept | new))


def write_page(tmp_path, workdirs, **options):
  """Writes a report without PNG files, which take time, and parses it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(page, 'save_png', lambda *_: None)
    path = report.write_report(tmp_path / 'page.html', workdirs, **options)
  return Page(path.read_text())


# Statistics


@pytest.mark.parametrize('queries', [1, 5, 25, 26, 75, 300])
def test_histogram_bins_contain_equally_many_accuracies(queries):
  edges = accuracy_bins(queries)
  possible = np.arange(queries + 1) / queries
  count, _ = np.histogram(possible, edges)
  assert count.sum() == queries + 1 and len(count) <= 26
  assert len({*count[:-1]}) <= 1 and 0 < count[-1] <= count[0]


def test_class_accuracy_and_confusion_counts_match_loops():
  rng = np.random.default_rng(0)
  classes = np.stack([rng.permutation(6)[:3] for _ in range(40)])
  predicted = rng.integers(0, 3, (40, 12)).astype(np.uint8)
  confused, possible = np.zeros((6, 6)), np.zeros((6, 6))
  accuracies = {c: [] for c in range(6)}
  for task, labels in zip(classes, predicted, strict=True):
    for label, true_class in enumerate(task):
      own = labels[4 * label : 4 * label + 4]
      accuracies[true_class].append(np.mean(own == label))
      for other_label, other_class in enumerate(task):
        confused[true_class, other_class] += np.sum(own == other_label)
        possible[true_class, other_class] += 4
  result = confusion_counts(predicted, classes, 6)
  np.testing.assert_array_equal(result, (confused, possible))
  for c, (mean, interval, count) in class_accuracy(predicted, classes).items():
    assert count == len(accuracies[c])
    np.testing.assert_allclose((mean, interval), mean_interval(accuracies[c]))


def test_best_and_worst_tasks_break_ties_by_loss():
  accuracy, loss = [0.5, 1.0, 0.2, 1.0, 0.2], [1.0, 0.3, 2.0, 0.1, 3.0]
  assert best_and_worst_tasks(accuracy, loss, 2) == ([3, 1], [4, 2])
  assert best_and_worst_tasks(accuracy[:3], loss[:3], 2) == (
    [1],
    [2],
  )


def test_interval_is_over_tasks_for_one_seed_and_over_seeds_for_several():
  results = [{'loss': x, 'interval': 0.1} for x in (0.5, 0.6, 0.65)]
  assert combine_seeds(results[:1], 'loss') == (0.5, 0.1)
  expected = mean_interval([0.5, 0.6, 0.65])
  assert combine_seeds(results, 'loss') == expected


def test_number_formatting():
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
  assert pluralize(5, 'query', 'queries') == '5 queries'
  assert pluralize(10_000, 'task') == '10,000 tasks'


# Reading runs


def test_directory_without_run_is_a_one_line_error(tmp_path):
  with pytest.raises(UserError, match='workdir .*none does not exist'):
    report.write_report(None, [tmp_path / 'none'])
  with pytest.raises(
    UserError, match='is not the workdir of a run: it contains neither'
  ) as e:
    report.write_report(None, [tmp_path])
  assert '\n' not in str(e.value)
  with pytest.raises(UserError, match='at least one WORKDIR'):
    report.write_report(None, [])


def test_runs_that_differ_only_in_the_seed_are_grouped(seeds, tmp_path, config):
  other = tmp_path / 'other'
  fields = {'inner__encoder_lr': 0.2, 'eval__num_steps': 2}
  fake_results.write_run(
    other, small_run.config(**fields), small_run.dataset('test'), 5
  )
  duplicate = copy_run(seeds, tmp_path)  # the same seed again
  groups = run_groups.group_runs(
    [runs.read_run(p) for p in (*seeds[::-1], other, duplicate)]
  )
  assert [len(group.runs) for group in groups] == [3, 1, 1]
  assert [run.seed for run in groups[0].runs] == [0, 1, 2]
  assert [g.name for g in groups] == ['run (3 seeds)', 'other', 'copy0']
  assert run_groups.differing_fields(groups) == [
    ['inner.encoder_lr', 0.1, 0.2, 0.1]
  ]
  (evaluation_group,) = groups[0].evaluation_groups
  evaluations = evaluation_group.evaluations
  assert [e.result['seed'] for e in evaluations] == [0, 1, 2]


def test_runs_with_the_same_name_include_the_parent_directory(seeds, tmp_path):
  paths = [shutil.copytree(seeds[0], tmp_path / name / 'run') for name in 'ab']
  groups = run_groups.group_runs([runs.read_run(path) for path in paths])
  assert [group.name for group in groups] == ['a/run', 'b/run']


@pytest.mark.parametrize(
  'workdirs, name',
  [
    (('x-seed0', 'x-seed1'), 'x (2 seeds)'),
    (('mini', 'mini-seed1'), 'mini (2 seeds)'),
    (('0', '1'), '0 (2 seeds)'),
    (('a1', 'a2'), 'a (2 seeds)'),
  ],
)
def test_group_name_is_the_common_prefix_of_the_seeds(tmp_path, workdirs, name):
  for seed, workdir in enumerate(workdirs):
    path = tmp_path / workdir
    path.mkdir()
    fake_results.write_metrics(path)
    config = small_run.config(seed=seed)
    (path / 'config.json').write_text(config_lib.to_json(config))
  (group,) = run_groups.group_runs(
    [runs.read_run(tmp_path / workdir) for workdir in workdirs]
  )
  assert group.name == name


def test_main_evaluation_is_the_one_with_the_most_seeds(
  seeds, tmp_path, config
):
  paths = [copy_run(seeds, tmp_path, seed) for seed in (0, 1)]
  more = small_run.config(eval__num_steps=2, eval__queries=1)
  fake_results.write_tasks(
    paths[0], more, small_run.dataset('test'), 12, name='newer'
  )
  os.utime(paths[0] / 'eval' / 'newer.json', (2e9, 2e9))
  (group,) = run_groups.group_runs([runs.read_run(path) for path in paths])
  newest, shared = group.evaluation_groups
  assert newest.result['queries'] == 1 and newest.name.endswith(
    '(1 of 2 seeds)'
  )
  assert run_groups.main_evaluations([group]) == [shared]


def test_evaluation_on_another_data_set_is_named_and_not_the_main_one(
  seeds, tmp_path, config
):
  workdir, dataset = copy_run(seeds, tmp_path), small_run.dataset('test')
  fields = {'data': 'cub', 'data_root': ''}
  fake_results.write_tasks(workdir, config, dataset, name='newer', **fields)
  groups = run_groups.group_runs([runs.read_run(workdir)])
  results = [e.result for e in groups[0].evaluation_groups]
  assert [describe_setup(r).split(', ')[0] for r in results] == [
    '30 tasks of the glyphs test split',
    '40 tasks of the cub test split (trained on glyphs)',
  ]
  (main,) = run_groups.main_evaluations(groups)
  assert main.result == results[0]


def test_result_without_optional_fields_shows_commands_for_missing_parts(
  seeds, tmp_path
):
  workdir = copy_run(seeds, tmp_path)
  (workdir / 'eval' / 'grid.json').unlink()
  edit_result(
    workdir, drop=('kind', 'curve', 'baselines', 'at_chance', 'commit')
  )
  kept = {name: read_arrays(workdir)[name] for name in ('accuracy', 'loss')}
  np.savez(workdir / 'eval' / 'tasks.npz', **kept)
  found = write_page(tmp_path, [workdir])
  for flags in ('--eval.grid', '--eval.baselines', '--eval.curve_tasks=100'):
    command = f'python main.py --mode=eval --workdir={workdir}'
    assert f'{command} --checkpoint=runs/x/checkpoints/best/200 {flags}' in (
      found.text
    )
  for heading in (
    'Accuracy by class',
    'Adaptation by inner step',
    'Norm modes',
  ):
    assert heading not in found.text
  assert 'Accuracy per task' in found.text


def test_results_of_earlier_versions_are_read(seeds, tmp_path):
  workdir = copy_run(seeds, tmp_path)
  result = read_result(workdir)
  baselines = result['baselines']
  baselines[1]['name'] = 'nearest_mean'
  edit_result(
    workdir,
    drop=('expected_at_chance',),
    at_chance_by_luck=result['expected_at_chance'],
    baselines=baselines,
    augment_support='crop',
  )
  tasks = runs.read_run(workdir).evaluations[0].result
  assert tasks['expected_at_chance'] == result['expected_at_chance']
  assert 'at_chance_by_luck' not in tasks
  assert tasks['augment_support'] == 'random_crop'
  found = write_page(tmp_path, [workdir])
  assert 'expected for random guesses: 68 %.' in found.text
  assert 'nearest centroid nearest class mean of the features' in found.text


def test_damaged_files_are_skipped_with_a_note(seeds, tmp_path):
  workdir = copy_run(seeds, tmp_path)
  for i, content in enumerate(('', '{', '[]', '{"kind": "x"}', '{}')):
    (workdir / 'eval' / f'bad{i}.json').write_text(content)
  (workdir / 'eval' / 'grid.npz').unlink()
  (workdir / 'eval' / 'tasks.npz').write_bytes(b'PK\x03\x04 cut')
  (workdir / 'config.json').write_text('{')
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('3\n{"step": 4}\n{"st')
  found = write_page(tmp_path, [workdir])
  bad = [f'bad{i}.json' for i in range(5)]
  for name in (*bad, 'grid.npz', 'tasks.npz'):
    assert f'{workdir}/eval/{name}' in found.text
  assert 'damaged or written by another version' in found.text


def test_run_without_evaluation_shows_the_command_to_evaluate(tmp_path):
  fake_results.write_metrics(tmp_path)
  found = write_page(tmp_path, [tmp_path])
  command = f'python main.py --mode=eval --workdir={tmp_path}'
  assert f'Not evaluated yet. {command}' in found.text
  assert 'Learning curves' in found.text


# The page


def test_page_loads_no_other_files(single_page):
  text = single_page.read_text()
  assert len(text) < 2_000_000
  found = Page(text)
  ids = [a['id'] for _, a in found.elements if 'id' in a]
  assert len(ids) == len({*ids})
  for tag, attributes in found.elements:
    assert tag not in ('script', 'link', 'iframe')
    for name, value in attributes.items():
      if name in ('href', 'src', 'xlink:href'):
        assert value.startswith('data:image/') or value[1:] in ids, value
      for url in re.findall(r'url\((.*?)\)', value or ''):
        assert url.startswith(('data:image/', '#')), url[:40]
  assert not re.search(r'@import|url\((?!data:|#)', text)


def test_figures_have_alt_text_and_png_files(single_page):
  found = Page(single_page.read_text())
  plots = found.find_all('svg')
  assert len(plots) == 8
  assert all(a['role'] == 'img' and a['aria-label'] for a in plots)
  assert all(a['alt'] for a in found.find_all('img'))
  folder = single_page.with_name('page_pictures')
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


def test_figures_use_the_color_scheme_of_the_page(single_page):
  text = single_page.read_text()
  used = {*re.findall(r'var\(--([a-z]+\d?)\)', text)}
  assert {'ink', 'muted', 'line', 'series0'} <= used
  assert used <= {*style.PALETTE, 'accent', 'heat'}
  for svg in re.findall('<svg.*?</svg>', text, re.DOTALL):
    without_images = re.sub(r'"data:.*?"', '', svg, flags=re.DOTALL)
    assert not re.findall('#[0-9a-f]{6}', without_images)
  light, dark = text.split('prefers-color-scheme')
  for name, pair in style.PALETTE.items():
    for part, color in zip((light, dark), pair, strict=True):
      assert f'--{name}:{color};' in part


def luminance(color):
  channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  linear = np.where(
    channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
  )
  return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize('scheme', [0, 1], ids=['light', 'dark'])
def test_contrast_meets_accessibility_guidelines(scheme):
  """WCAG 2.1: 4.5 for text, 3 for lines, against page and cards."""
  colors = {name: pair[scheme] for name, pair in style.PALETTE.items()}
  for background in ('page', 'card'):
    for name, color in colors.items():
      if name in ('page', 'card', 'line'):
        continue
      pair = sorted(map(luminance, (color, colors[background])))
      ratio = (pair[1] + 0.05) / (pair[0] + 0.05)
      required = 4.5 if name in ('ink', 'muted') else 3
      assert ratio >= required, (name, background, ratio)


def test_line_styles_are_distinct():
  styles = [str(style.line_style(number)) for number in range(24)]
  assert len({*styles}) == 24


def test_summary_describes_the_evaluation(single_page, seeds):
  result, text = read_result(seeds[0]), Page(single_page.read_text()).text
  mean, interval = 100 * result['accuracy'], 100 * result['interval']
  assert f'{mean:.2f} ± {interval:.2f} %' in text
  assert '± is the 95 % confidence interval over 30 tasks' in text
  assert (
    'Evaluated on 30 tasks of the glyphs test split, 3-way 1-shot, 2 query '
    'images per class, 2 inner steps, norm mode batch.'
  ) in text
  assert 'transductive the query images of a task are classified joi' in text
  assert f'Median over tasks: {100 * result["median"]:.2f} %' in text
  at_chance = normalize_spaces(formatting.format_share(result['at_chance']))
  assert (
    f'Tasks at or below chance (33.3 %): {at_chance}; expected for random '
    'guesses: 68 %.'
  ) in text
  assert (
    'Checkpoint of step 200, seed 0, float32, 2 x cpu, maml_jax 0.1.0 '
    '(0123456789+), jax 0.12.0.'
  ) in text


def test_grid_shows_every_cell_and_its_protocol(single_page, seeds):
  result = read_result(seeds[0], 'grid')
  _, *rows = rows_of(single_page.read_text(), 'heat')
  cells = iter(result['cells'])
  for label, *shown in rows:
    for steps, (attributes, text) in zip((0, 1, 5, 10), shown, strict=True):
      cell = next(cells)
      mean, interval = (
        f'{100 * cell[k]:.2f}' for k in ('accuracy', 'interval')
      )
      difference = formatting.format_difference(
        'accuracy', cell['difference'], cell['difference_interval']
      )
      key = cell['norm'], cell['queries'], steps
      assert cell['num_steps'] == steps
      assert ('base' in attributes) == (key == ('batch', 15, 5))
      if key == ('batch', 15, 5):
        difference = 'base'
      assert text.split('|')[1::2] == [mean, f' ±\xa0{interval}', difference]
    protocol = 'transductive' if key[0] == 'batch' else 'inductive'
    queries = '1 query' if key[1] == 1 else f'{key[1]} queries'
    assert label[1] == f'{key[0]}|{queries}, {protocol}|'
  assert next(cells, None) is None


def test_stronger_colors_are_higher_accuracies(single_page, seeds):
  _, *rows = rows_of(single_page.read_text(), 'heat')
  heat = [
    int(re.search(r'--heat:(\d+)', attributes)[1])
    for _, *shown in rows
    for attributes, _ in shown
  ]
  accuracy = [
    cell['accuracy'] for cell in read_result(seeds[0], 'grid')['cells']
  ]
  order = np.argsort(accuracy)
  assert (np.diff(np.array(heat)[order]) >= 0).all()
  assert (min(heat), max(heat)) == (4, 60)


def test_seeds_are_combined_with_an_interval_over_seeds(seeds, tmp_path):
  found = write_page(tmp_path, seeds)
  values = [read_result(path)['accuracy'] for path in seeds]
  expected = formatting.format_number('accuracy', *mean_interval(values))
  assert normalize_spaces(expected) in found.text
  assert 'interval over 3 seeds, each evaluated on 30 tasks' in found.text
  grids = [read_result(path, 'grid')['cells'][0] for path in seeds]
  difference = mean_interval([cell['difference'] for cell in grids])
  expected = formatting.format_difference('accuracy', *difference)
  assert normalize_spaces(expected) in found.text
  assert len(found.find_all('article')) == 1
  assert found.text.startswith('run (3 seeds)')


def test_mean_of_first_tasks_is_compared_with_mean_of_all(
  seeds, tmp_path, config
):
  fake_results.write_tasks(tmp_path, config, small_run.dataset('test'), 150)
  text = write_page(tmp_path, [tmp_path]).text
  values = read_arrays(tmp_path)['accuracy']
  difference, margin = prefix_difference(values, 100)
  row = [
    formatting.format_number('accuracy', *mean_interval(values[:100])),
    formatting.format_difference('accuracy', difference, None),
    f'±\xa0{formatting.format_number("accuracy", margin)}',
  ]
  assert f'100 {normalize_spaces(" ".join(row))} 150 ' in text
  deviation = formatting.format_number('accuracy', values.std(ddof=1))
  expected = f'standard deviation over tasks is {normalize_spaces(deviation)}'
  assert expected in text


def test_runs_are_compared_task_by_task(seeds, tmp_path):
  first, second = (copy_run(seeds, tmp_path, seed) for seed in (0, 1))
  for workdir in (first, second):
    (workdir / 'metrics.jsonl').unlink()
    (workdir / 'eval' / 'grid.json').unlink()
  config = config_lib.from_json((second / 'config.json').read_text())
  with config.unlocked():
    config.outer.gradient = 'first_order'
  (second / 'config.json').write_text(config_lib.to_json(config))
  text = write_page(tmp_path, [first, second]).text
  a, b = (read_arrays(workdir)['accuracy'] for workdir in (first, second))
  row = [
    formatting.format_number('accuracy', *mean_interval(b)),
    formatting.format_difference('accuracy', *mean_interval(b - a)),
  ]
  assert f'copy1 transductive {normalize_spaces(" ".join(row))} 30' in text
  assert 'outer.gradient exact first_order' in text


def test_baselines_are_shown_with_their_paired_differences(single_page, seeds):
  text = Page(single_page.read_text()).text
  for baseline in read_result(seeds[0])['baselines']:
    name = baseline['name'].replace('_', ' ')
    accuracy = formatting.format_number(
      'accuracy', baseline['accuracy'], baseline['interval']
    )
    difference = formatting.format_difference(
      'accuracy', baseline['difference'], baseline['difference_interval']
    )
    row = f'{name} {baseline["about"]} {accuracy} {difference}'
    assert normalize_spaces(row) in text


def test_names_and_titles_are_escaped_but_markup_is_not(tmp_path, single_page):
  fake_results.write_metrics(tmp_path)
  cells = 'a <b>', Markup('<i id="extra">not <b>escaped</b></i>')
  found = write_page(
    tmp_path,
    [tmp_path],
    title='a < b & "c"',
    first_section=page.TableSection('Findings', 'x < y', '12', [cells]),
  )
  for text in ('a < b & "c"', 'x < y', 'a <b>', 'not escaped', 'Findings'):
    assert text in found.text
  order = [a['id'] for _, a in found.elements if 'id' in a]
  assert order.index('extra') < order.index('part0')
  assert 'class <1>' in Page(single_page.read_text()).text


# Tasks and classes


def test_best_and_worst_tasks_are_shown_with_their_predictions(
  single_page, seeds, config
):
  arrays = read_arrays(seeds[0])
  order = np.lexsort((arrays['loss'], -arrays['accuracy']))
  phase = setup.eval_phase(config)
  dataset = small_run.dataset('test')
  positions, _ = eval_task_indices(dataset, phase, 30)
  text = single_page.read_text()
  shown = re.findall('<figure class="episode".*?</figure>', text, re.DOTALL)
  assert len(shown) == 4
  for html_, task in zip(shown, order[[0, 1, -1, -2]], strict=True):
    assert f'task {task + 1}<' in html_
    marks = re.findall('tile (correct|wrong)', html_)
    label = np.repeat(np.arange(3), 2)
    is_correct = arrays['predicted'][task] == label
    assert marks == ['correct' if x else 'wrong' for x in is_correct]
    letters = re.findall('[✓✗] ([A-Z])<', html_)
    assert letters == [chr(ord('A') + p) for p in arrays['predicted'][task]]
    for c in arrays['classes'][task]:
      assert f'class &lt;{c}&gt;:' in html_
    codes = re.findall('base64,(.*?)"', html_)
    images = [Image.open(io.BytesIO(base64.b64decode(c))) for c in codes]
    expected = dataset.images[positions[task]].reshape(-1, 28, 28)
    np.testing.assert_array_equal(np.stack(images), expected)


def test_report_of_a_single_task(tmp_path, config):
  dataset = small_run.dataset('test')
  fake_results.write_run(tmp_path / 'run', config, dataset, num_tasks=1)
  page = write_page(tmp_path, [tmp_path / 'run'])
  assert 'best 1 of 1: ' in page.text and 'worst 1' not in page.text
  assert not re.search(r'\b(inf|nan)\b', page.text)


def test_hardest_classes_have_the_lowest_accuracy(single_page, seeds):
  arrays = read_arrays(seeds[0])
  label = np.repeat(np.arange(3), 2)
  accuracy = (arrays['predicted'] == label).reshape(30, 3, 2).mean(-1)
  means = {c: accuracy[arrays['classes'] == c].mean() for c in range(8)}
  ranked = sorted(means, key=means.get)
  section = single_page.read_text().partition('<h2>Accuracy by class')[2]
  section = section.partition('</table>')[0]
  assert re.findall(r'alt="class &lt;(\d)&gt;"', section) == [
    str(c) for c in ranked
  ]


def test_missing_data_set_is_noted(seeds, tmp_path, monkeypatch):
  def missing(*_):
    raise UserError('glyphs is not prepared: no file X\nprepare it with')

  monkeypatch.setattr(data, 'class_names', missing)
  found = write_page(tmp_path, seeds[:1])
  assert 'class names are not available: glyphs is not prepared' in found.text
  assert 'prepare it with' not in found.text
  assert 'class 3' in found.text and not found.find_all('img')


def test_tasks_of_another_data_set_are_not_shown(seeds, tmp_path):
  workdir = copy_run(seeds, tmp_path)
  arrays = dict(read_arrays(workdir))
  arrays['classes'] = (arrays['classes'] + 1) % 8
  np.savez(workdir / 'eval' / 'tasks.npz', **arrays)
  found = write_page(tmp_path, [workdir])
  assert 'glyphs differs from the evaluated one' in found.text
  assert not found.find_all('figure', 'episode')


def test_regression_shows_losses_without_chance_level(tmp_path):
  sinusoid = str(small_run.PRESET.with_name('sinusoid.py'))
  config = config_lib.load(sinusoid)
  fake_results.write_metrics(tmp_path, accuracy=False)
  fake_results.write_regression(tmp_path, config)
  found = write_page(tmp_path, [tmp_path])
  result = read_result(tmp_path)
  loss = formatting.format_number('loss', result['loss'], result['interval'])
  assert normalize_spaces(loss) in found.text
  assert 'Loss per task' in found.text
  assert 'no fitted curves: no best checkpoint' in found.text
  for word in (
    'chance,',
    'below chance',
    'inductive ',
    'Accuracy by class',
    '--eval.grid',
  ):
    assert word not in found.text


def test_learned_rates_are_shown_by_parameter_and_step(tmp_path):
  fields = {
    'inner__num_steps': 2,
    'inner__learn_lr': 'tensor',
    'inner__per_step': 'lr',
    'train__num_epochs': 1,
  }
  train(small_run.config(**fields), tmp_path)
  found = write_page(tmp_path, [tmp_path])
  assert 'Learned rates' in found.text and 'checkpoint of step 5' in found.text
  groups = run_groups.group_runs([runs.read_run(tmp_path)])
  ((_, _, (columns, rows, values, texts)),) = tables.rate_tables(groups)
  assert columns == ['step 1', 'step 2']
  assert rows == ['classifier/bias', 'classifier/kernel', 'encoder/kernel']
  rates = checkpoint.load(tmp_path).params['inner']['lr']
  head = rates['classifier']
  np.testing.assert_allclose(
    values, [head['bias'], head['kernel'], rates['encoder']['kernel']]
  )
  shown = found.text.split()
  assert all(text in shown for row in texts for text in row)


# Figures


def test_band_of_several_seeds_is_their_range(seeds):
  (group,) = run_groups.group_runs([runs.read_run(path) for path in seeds])
  figure = figures.plot_learning_curves([group], 'accuracy')
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
  (group,) = run_groups.group_runs([runs.read_run(seeds[0])])
  (band,) = (
    figures.plot_learning_curves([group], 'accuracy').axes[0].collections
  )
  x, y = band.get_paths()[0].vertices.T
  assert np.ptp(y[x == 100]) == pytest.approx(2 * 0.02)


def test_long_curves_are_thinned_but_keep_their_ends(tmp_path):
  fake_results.write_metrics(tmp_path, num_epochs=800)
  (group,) = run_groups.group_runs([runs.read_run(tmp_path)])
  for line in figures.plot_learning_curves([group], 'loss').axes[0].lines:
    x = line.get_xdata()
    assert len(x) <= 300
    if len(x) > 1:
      assert x[-1] >= 0.98 * 40_000


def test_histogram_counts_all_tasks_and_shows_chance_level(seeds):
  (group,) = run_groups.group_runs([runs.read_run(seeds[0])])
  (axes,) = figures.plot_histogram(run_groups.main_evaluations([group])).axes
  outline = axes.patches[0].get_data()
  assert outline.values.sum() == pytest.approx(1)
  accuracy = read_arrays(seeds[0])['accuracy']
  for share, low, high in zip(
    outline.values, outline.edges, outline.edges[1:], strict=False
  ):
    assert share == np.mean((low <= accuracy) & (accuracy < high))
  (chance,) = axes.lines
  assert chance.get_xdata()[0] == pytest.approx(1 / 3)


def test_adaptation_shows_support_and_query_with_intervals(seeds):
  (group,) = run_groups.group_runs([runs.read_run(seeds[0])])
  curve = read_result(seeds[0])['curve']
  for name in ('accuracy', 'loss'):
    (axes,) = figures.plot_adaptation(
      run_groups.main_evaluations([group]), name
    ).axes
    query, support = axes.lines[:2]
    np.testing.assert_allclose(query.get_ydata(), curve['query'][name])
    np.testing.assert_allclose(support.get_ydata(), curve['support'][name])
    x, y = axes.collections[0].get_paths()[0].vertices.T
    tasks = read_arrays(seeds[0])[f'curve_query_{name}']
    for step in range(3):
      _, interval = mean_interval(tasks[:, step])
      assert np.ptp(y[x == step]) == pytest.approx(2 * interval)


# The command line


def test_command_line_writes_the_output_file(tmp_path, capsys):
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


def test_report_of_a_single_run_is_written_to_its_workdir(tmp_path):
  fake_results.write_metrics(tmp_path)
  assert cli.run(['--mode=report', str(tmp_path)]) == 0
  assert (tmp_path / 'report.html').is_file()
  assert (tmp_path / 'report_pictures' / 'learning_loss.png').is_file()


def test_unwritable_output_is_a_user_error(seeds, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write .*page.html: '):
    report.write_report(tmp_path / 'file' / 'page.html', seeds[:1])


# The browser


@pytest.mark.slow
@pytest.mark.parametrize('width', [400, 1280])
def test_report_fits_the_window_without_broken_images(single_page, width):
  with browser.open_page(single_page.as_uri(), width) as page:
    assert browser.layout_faults(page) == []
