"""Tests of --mode=app in headless Chromium, and of its uploads."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import browser
import numpy as np
import PIL.Image
import pytest

from maml_jax import cli, data
from maml_jax.fewshot import app_markup, app_uploads

REPOSITORY = pathlib.Path(__file__).parent.parent
CHECKPOINT = REPOSITORY / 'checkpoints' / 'glyphs_5w1s'
CROSS = [[(0.3, 0.3), (0.7, 0.7)], [(0.7, 0.3), (0.3, 0.7)]]
BAR = [[(0.5, 0.2), (0.5, 0.8)]]


@pytest.fixture
def app():
  pytest.importorskip('gradio', reason='needs the extra app')
  from maml_jax.fewshot import app

  return app


def test_app_needs_a_checkpoint(app, capsys):
  assert cli.main(['--mode=app']) == 2
  assert '--mode=app needs --checkpoint=DIR' in capsys.readouterr().err


def test_unreadable_and_large_uploads_are_skipped_and_deleted(app, tmp_path):
  good, broken, large = (tmp_path / f'{i}.png' for i in range(3))
  PIL.Image.new('L', (30, 30), 'white').save(good)
  broken.write_bytes(good.read_bytes()[:40])
  PIL.Image.new('1', (10_000, 5_000)).save(large)
  pictures, messages = app_uploads.read_uploads(
    [good, broken, large], data.spec('omniglot')
  )
  assert [picture.path for picture in pictures] == [good]
  assert messages == [
    'skipped 1.png: not an image',
    'skipped 2.png: too many pixels: 10000 x 5000',
  ]
  assert list(tmp_path.iterdir()) == []


def test_number_of_uploads_is_limited(app, tmp_path):
  paths = [tmp_path / f'{i}.png' for i in range(60)]
  for path in paths:
    PIL.Image.new('L', (30, 30), 'white').save(path)
  pictures, messages = app_uploads.read_uploads(paths, data.spec('omniglot'))
  assert len(pictures) == 50
  assert messages == ['using 50 of the 60 files']
  assert list(tmp_path.iterdir()) == []


def test_uploads_are_deleted_when_the_last_page_is_closed(tmp_path):
  kept, unused = (
    tmp_path / 'models' / 'model.npz',
    tmp_path / 'a' / 'unused.png',
  )
  for path in kept, unused:
    path.parent.mkdir()
    path.write_bytes(b'x')
  uploads = app_uploads.Uploads(tmp_path, data.spec('omniglot'), kept.parent)
  uploads.open_page('first')
  uploads.open_page('second')
  uploads.close_page('first')
  assert unused.exists()
  uploads.close_page('second')
  assert kept.exists() and not unused.exists()


def test_names_on_the_page_are_escaped(app, tmp_path):
  shapes = app_markup.draw_shapes(tmp_path)
  assert len(shapes) == 12 and len({name for name, _ in shapes}) == 3
  pictures, _ = app_uploads.read_uploads([shapes[0][1]], data.spec('omniglot'))
  name = '<img src=x onerror=alert(1)>${value}{{value}}'
  by_step = np.array([[0.5, 0.5], [0.2, 0.8]])
  for text in (
    app_markup.class_html(name, pictures),
    app_markup.prediction_html(pictures[0], ['a', name], by_step),
  ):
    assert '&lt;img src=x' in text
    assert not re.search(r'<img src=x|\$\{|\{\{', text)
  assert '80 %' in text


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  """Address and temporary directory of the running program, then SIGTERM."""
  pytest.importorskip('gradio', reason='needs the extra app')
  if not browser.CHROMIUM:
    pytest.skip('needs chromium, such as the package of Debian')
  folder = tmp_path_factory.mktemp('app')
  argv = [sys.executable, 'main.py', '--mode=app', f'--checkpoint={CHECKPOINT}']
  with subprocess.Popen(
    argv,
    cwd=REPOSITORY,
    env={**os.environ, 'TMPDIR': str(folder)},
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      line = process.stdout.readline()
      yield re.search(r'http://127\.0\.0\.1:\d+', line)[0], folder
      process.send_signal(signal.SIGTERM)
      assert process.wait(60) == 0
      assert list(folder.glob('maml_jax-*')) == []
    finally:
      process.kill()


def draw(page, where, strokes):
  """Draws with the mouse; points are in units of the canvas."""
  canvas = page.locator(f'#{where} canvas')
  canvas.scroll_into_view_if_needed()
  box = canvas.bounding_box()
  for stroke in strokes:
    points = [
      (box['x'] + box['width'] * x, box['y'] + box['height'] * y)
      for x, y in stroke
    ]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
      page.mouse.move(*point, steps=8)
    page.mouse.up()


def uploads(folder):
  """Returns the uploads on disk; Gradio leaves some empty files."""
  files = [x for x in folder.glob('maml_jax-*/**/*') if x.is_file()]
  return [x for x in files if x.stat().st_size and x.name != 'model.npz']


def click(page, name):
  page.get_by_role('button', name=name).click()


def open_tab(page, name):
  """Opens a tab of the examples."""
  page.get_by_role('tab', name=name).first.click()


@pytest.mark.slow
def test_draw_two_classes_learn_ask_and_predict(server, tmp_path):
  with browser.open_page(server[0], 1280) as page:
    for i, (name, strokes) in enumerate({'cross': CROSS, 'bar': BAR}.items()):
      page.get_by_label('Class').fill(name)
      draw(page, 'example', strokes)
      click(page, 'Add the drawing')
      page.locator('#examples img').nth(i).wait_for()
    click(page, 'Learn')
    page.get_by_text('classes with a single image: bar, cross').wait_for()
    draw(page, 'question', CROSS)
    page.locator('#answers b', has_text='cross ').wait_for()
    # In a single call, because each stroke of the drawing updates the answer.
    title, rows, cells = page.locator('#answers').evaluate("""x => [
      x.querySelector('b').innerText,
      x.querySelectorAll('tr').length,
      [...x.querySelectorAll('td')].map(cell => cell.innerText),
    ]""")
    # Header and classes; name and steps 0 to 10.
    assert rows == 3 and len(cells) == 2 * 11
    assert int(cells[10]) + int(cells[21]) in (99, 100, 101)
    assert title == f'cross {cells[21]} %' and int(cells[21]) > 50
    assert browser.layout_faults(page) == []

    page.locator('#question canvas').screenshot(path=tmp_path / 'cross.png')
    with page.expect_download() as download:
      click(page, 'Download the model')
    download.value.save_as(tmp_path / 'model.npz')
  argv = ['--mode=predict', f'--model={tmp_path / "model.npz"}']
  assert cli.main([*argv, str(tmp_path / 'cross.png')]) == 0


@pytest.mark.slow
def test_bad_files_get_a_message_and_no_upload_is_left(server, tmp_path):
  broken, large = tmp_path / 'broken.png', tmp_path / 'large.png'
  broken.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(50))
  PIL.Image.new('1', (10_000, 5_000)).save(large)
  with browser.open_page(server[0], 1280) as page:
    open_tab(page, 'Files')
    page.get_by_label('Class').fill('dog')
    inputs = page.locator('input[type=file][multiple]').first
    inputs.set_input_files([broken, large])
    page.get_by_text('skipped broken.png: ').wait_for()
    page.get_by_text('skipped large.png: too many pixels').wait_for()
    assert uploads(server[1]) == []
    # A file that is uploaded, but not used by the page.
    page.evaluate("""async () => {
      const form = new FormData()
      form.append('files', new File(['x'], 'unused.png'))
      await fetch('/gradio_api/upload', {method: 'POST', body: form})
    }""")
    assert [path.name for path in uploads(server[1])] == ['unused.png']
    page.goto('about:blank')
    deadline = time.monotonic() + 60
    while uploads(server[1]) and time.monotonic() < deadline:
      time.sleep(0.2)
    assert uploads(server[1]) == []


@pytest.mark.slow
def test_wrong_use_gets_a_message_and_keeps_the_drawing(server):
  with browser.open_page(server[0], 400) as page:
    draw(page, 'example', CROSS)
    click(page, 'Add the drawing')
    page.get_by_text('enter the name of the class first').wait_for()
    page.get_by_label('Class').fill('W' * 60)
    click(page, 'Add the drawing')
    page.locator('#examples img').first.wait_for()
    click(page, 'Add the drawing')
    page.get_by_text('draw an example first').wait_for()
    click(page, 'Learn')
    page.get_by_text('add examples of two or more classes first').wait_for()
    page.get_by_label('Class').fill('bar')
    draw(page, 'example', BAR)
    click(page, 'Add the drawing')
    page.locator('#examples img').nth(1).wait_for()
    click(page, 'Learn')
    page.get_by_text('classes with a single image').wait_for()
    draw(page, 'question', CROSS)
    page.locator('#answers table').wait_for()
    name = page.locator('#answers th bdi').first.bounding_box()
    assert name['width'] < 150  # pixels; long names are wrapped
    assert browser.layout_faults(page) == []
    click(page, 'Start again')
    page.locator('#answers table').wait_for(state='detached')
    assert page.get_by_role('button', name='Download the model').count() == 0
    assert page.locator('#notes').inner_text() == ''


@pytest.mark.slow
def test_page_fits_a_phone_and_takes_webcam_pictures(server):
  with browser.open_page(server[0], 400) as page:
    click(page, 'Use built-in examples')
    page.locator('#examples img').nth(11).wait_for()
    open_tab(page, 'Webcam')
    page.get_by_label('Class').fill('me')
    page.get_by_text('Click to Access Webcam').first.click()
    page.wait_for_function("document.querySelector('video').currentTime > 0")
    page.get_by_label('capture photo').click()
    page.locator('#examples img').nth(12).wait_for()
    assert uploads(server[1]) == []
    click(page, 'Start again')
    page.locator('#examples img').first.wait_for(state='detached')
    click(page, 'Use built-in examples')
    page.locator('#examples img').nth(11).wait_for()
    click(page, 'Learn')
    page.get_by_text('leave-one-out accuracy on').wait_for()
    draw(page, 'question', BAR)
    page.locator('#answers table').wait_for()
    assert browser.layout_faults(page) == []


@pytest.mark.slow
def test_address_that_cannot_be_used_is_a_user_error(server):
  port = server[0].rpartition(':')[2]
  script = f"""if True:
    from maml_jax.fewshot import app
    from maml_jax.utils.errors import UserError
    local = '127.0.0.1'
    for address in (local, {port}), (local, 70_000), ('300.1.1.1', None):
      try:
        with app.serve({str(CHECKPOINT)!r}, *address):
          print('no error')
      except UserError as error:
        print(error)
  """
  printed = subprocess.check_output(
    [sys.executable, '-c', script], cwd=REPOSITORY, text=True
  )
  assert printed.splitlines() == [
    f'cannot listen on 127.0.0.1:{port}: Address already in use',
    'cannot listen on 127.0.0.1:70000: bind(): port must be 0-65535.',
    'cannot listen on 300.1.1.1: Name or service not known',
  ]
