"""A page in the browser: show a few examples of each class, learn, and ask.

    python main.py --mode=app --checkpoint=checkpoints/omniglot_5w1s

Uploads are deleted as soon as they are read, and when a page is closed.
"""

import base64
import contextlib
import os
import pathlib
import signal
import tempfile
import threading
from collections.abc import Iterator

import gradio as gr
from gradio import themes

from maml_jax import data
from maml_jax.data.images import Picture, UnreadableImageError, read_image
from maml_jax.fewshot import adaptation
from maml_jax.fewshot import app_markup as markup
from maml_jax.fewshot.commands import MODEL_FILE, describe_left_out, leave_out
from maml_jax.fewshot.image_folders import SupportSet
from maml_jax.fewshot.inputs import encode_labels
from maml_jax.utils.compilation_cache import enable_compilation_cache
from maml_jax.utils.console import print_result
from maml_jax.utils.errors import NonFiniteError, UserError

__all__ = ['app', 'draw_shapes', 'read_uploads', 'serve']

MAX_FILE_SIZE = '32mb'
MAX_PIXELS = 40_000_000  # of one image
MAX_FILES = 50  # at a time
MAX_EXAMPLES = 200


def app(flags, config) -> None:
  """Runs --mode=app until Ctrl-C or SIGTERM.

  Raises:
    UserError: an argument is missing or invalid.
  """
  if not flags.checkpoint:
    raise UserError('--mode=app needs --checkpoint=DIR')
  enable_compilation_cache(least_seconds=0.0)
  stop = threading.Event()
  for number in signal.SIGINT, signal.SIGTERM:
    signal.signal(number, lambda *_: stop.set())
  address = flags.host or '127.0.0.1', flags.port
  with serve(flags.checkpoint, *address, config) as url:
    print_result(f'open {url} in a browser; Ctrl-C stops the program')
    stop.wait()


@contextlib.contextmanager
def serve(
  checkpoint, host='127.0.0.1', port=None, config=None
) -> Iterator[str]:
  """Serves the page while the context is active; notebooks display it.

  Args:
    checkpoint: a workdir or the directory of one checkpoint.
    host: the address to listen on; by default only this machine can connect.
    port: the port; default: a free one from 7860 on.
    config: see `adaptation.load`.

  Yields:
    The address of the page.

  Raises:
    UserError: the checkpoint is invalid or a regression; the port is in use.
  """
  which = config.eval.checkpoint if config else 'best'
  learner = adaptation.load(checkpoint, which=which, config=config)
  if learner.config.data.name in data.REGRESSIONS:
    raise UserError(f'{checkpoint} is a regression: it has no images')
  with tempfile.TemporaryDirectory(prefix='maml_jax-') as folder:
    os.environ |= {'GRADIO_TEMP_DIR': folder, 'GRADIO_ANALYTICS_ENABLED': '0'}
    name = pathlib.Path(checkpoint).resolve().name
    page = _make_page(learner, pathlib.Path(folder), name)
    try:
      _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        height=1000,  # in notebooks
        max_file_size=MAX_FILE_SIZE,
        css=markup.CSS,
        theme=themes.Default(font='sans-serif', font_mono='monospace'),
      )
    except (OSError, OverflowError) as error:
      reason = str(error).partition('. ')[0]
      raise UserError(f'cannot listen on {host}: {reason}') from error
    try:
      yield url
    finally:
      page.close(verbose=False)


def read_uploads(paths, spec) -> tuple[list[Picture], list[str]]:
  """Reads and deletes files; returns the images and messages on the others."""
  pictures, messages = [], []
  if len(paths) > MAX_FILES:
    messages.append(f'using {MAX_FILES} of the {len(paths)} files')
  for path in paths[:MAX_FILES]:
    try:
      pictures.append(read_image(path, spec, MAX_PIXELS))
    except UnreadableImageError as error:
      messages.append(f'skipped {path.name}: {error}')
  for path in paths:
    path.unlink(missing_ok=True)
  return pictures, messages


def draw_shapes(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """Draws four variants of each of three shapes; returns names and files."""
  from PIL import Image, ImageDraw  # saves start-up time

  shapes = []
  for name, sides in {'circle': 40, 'square': 4, 'triangle': 3}.items():
    for i in range(4):
      image, circle = Image.new('L', (112, 112), 255), (56, 56, 28 + 4 * i)
      draw = ImageDraw.Draw(image)
      draw.regular_polygon(circle, sides, 8 * i - 12, outline=0, width=6)
      shapes.append((name, folder / f'{name}{i}.png'))
      image.save(shapes[-1][1])
  return shapes


def _make_page(learner, folder: pathlib.Path, title: str) -> gr.Blocks:
  """Returns the page; uploads are in `folder`."""
  spec = data.spec(learner.config.data.name)
  models = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix='models-'))

  def warn(*messages):
    if messages:
      gr.Warning('<br>'.join(map(markup.escape, messages)), duration=None)

  def read(drawing, webcam, files):
    paths = [pathlib.Path(x) for x in (*(files or ()), webcam) if x]
    if drawing:
      paths.append(pathlib.Path(tempfile.mkdtemp(dir=folder), 'drawing.png'))
      paths[-1].write_bytes(base64.b64decode(drawing.partition(',')[2]))
    pictures, messages = read_uploads(paths, spec)
    warn(*messages)
    return pictures

  def show(examples):
    groups = {name: [] for name, _ in examples}
    for name, picture in examples:
      groups[name].append(picture)
    return examples, ''.join(map(markup.tiles, groups, groups.values()))

  def add(examples, name, *inputs):
    new, name = read(*inputs), ' '.join(name.split())
    if not name:
      warn('enter the name of the class first')
    elif len(examples) + len(new) > MAX_EXAMPLES:
      warn(f'at most {MAX_EXAMPLES} examples')
    else:
      examples = [*examples, *((name, picture) for picture in new)]
    return *show(examples), None, None, None

  def show_shapes():
    names, paths = zip(*draw_shapes(folder), strict=True)
    return show(list(zip(names, read_uploads(paths, spec)[0], strict=True)))

  def learn(examples):
    names, pictures = [x[0] for x in examples], [x[1] for x in examples]
    try:
      classes, labels = encode_labels(names, len(names))
      support = SupportSet(classes.tolist(), pictures, labels)
      program = adaptation.make_adaptation_program(learner, len(classes))
      classifier, predict = adaptation.fit_each_step(
        learner, program, support.pixels, labels, classes
      )
    except (UserError, NonFiniteError) as error:
      raise gr.Error(markup.escape(error), print_exception=False) from error
    model = pathlib.Path(tempfile.mkdtemp(dir=models), MODEL_FILE)
    classifier.save(model)
    download = gr.DownloadButton(value=str(model), visible=True)
    learned = classes, predict
    yield learned, 'measuring the leave-one-out accuracy ...', download
    left_out = leave_out(learner, program, support)
    _, text, warning = describe_left_out(left_out, support)
    text = f'<p>{markup.escape(text)}</p><p><b>{markup.escape(warning)}</b></p>'
    yield learned, text, download

  def ask(learned, *inputs):
    pictures, answers = read(*inputs), []
    for picture in pictures if learned else ():
      classes, predict = learned
      by_step = predict(picture.pixels[None])[:, 0]
      answers.append(markup.answer(picture, classes, by_step))
    if pictures and not learned:
      answers.append('Press Learn first.')
    return ''.join(answers), None, None

  def remove_uploads():
    for path in folder.rglob('*'):
      if path.is_file() and not path.is_relative_to(models):
        path.unlink(missing_ok=True)

  def add_inputs(name):
    with gr.Tab('Draw'):
      pad = gr.HTML(
        html_template=markup.PAD, js_on_load=markup.PAD_SCRIPT, elem_id=name
      )
    with gr.Tab('Webcam'):
      webcam = gr.Image(sources='webcam', height=280)
      # Gradio would decode the image and keep a copy.
      webcam.preprocess = lambda payload: payload and payload.path
    with gr.Tab('Files'):
      files = gr.File(file_count='multiple', height=280)
    return [pad, webcam, files]

  with gr.Blocks(title='maml_jax', analytics_enabled=False) as page:
    examples, learned = gr.State([]), gr.State()
    gr.Markdown(f'# Teach new classes to `{title}`')
    with gr.Row():
      with gr.Column(min_width=300):
        gr.Markdown('### 1. Show a few examples of two or more classes')
        name = gr.Textbox(label='Class', max_length=60)
        support = add_inputs('example')
        add_button = gr.Button('Add the drawing')
        shown = [examples, gr.HTML(elem_id='examples')]
        with gr.Row():
          shapes_button = gr.Button('Use built-in examples', size='sm')
          clear_button = gr.Button('Start again', size='sm')
        learn_button = gr.Button('Learn', variant='primary')
        notes = gr.HTML(elem_id='notes')
        download = gr.DownloadButton('Download the model', visible=False)
      with gr.Column(min_width=300):
        gr.Markdown('### 2. Ask what other images show')
        query = pad, webcam, files = add_inputs('question')
        answers = gr.HTML(elem_id='answers', apply_default_css=False)
    for event in add_button.click, support[1].input, support[2].upload:
      event(add, [examples, name, *support], [*shown, *support])
    shapes_button.click(show_shapes, None, shown)
    clear_button.click(lambda: show([]), None, shown)
    learning = learn_button.click(learn, examples, [learned, notes, download])
    for event in pad.change, webcam.input, files.upload, learning.success:
      event(ask, [learned, *query], [answers, webcam, files])
    page.unload(remove_uploads)
  return page
