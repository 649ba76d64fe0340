"""A page in the browser: show a few examples of each class, learn, and ask.

    python main.py --mode=app --checkpoint=checkpoints/omniglot_5w1s

Uploads are deleted as soon as they are read, and when the last page is closed.
"""

import contextlib
import os
import pathlib
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator

import gradio as gr
from gradio import themes

from maml_jax import data
from maml_jax.fewshot import adaptation
from maml_jax.fewshot import app_markup as markup
from maml_jax.fewshot.app_uploads import Uploads, is_drawing, read_uploads
from maml_jax.fewshot.commands import (
  MODEL_FILE,
  describe_left_out,
  predict_left_out,
)
from maml_jax.fewshot.image_folders import SupportSet
from maml_jax.fewshot.inputs import encode_labels
from maml_jax.utils.compilation_cache import enable_compilation_cache
from maml_jax.utils.console import print_result
from maml_jax.utils.errors import NonFiniteError, UserError

__all__ = ['app', 'serve']

MAX_FILE_SIZE = '32mb'
MAX_EXAMPLES = 200


def app(flags, config) -> None:
  """Runs --mode=app until Ctrl-C, SIGTERM or SIGHUP.

  Raises:
    UserError: an argument is missing or invalid.
  """
  if not flags.checkpoint:
    raise UserError('--mode=app needs --checkpoint=DIR')
  enable_compilation_cache(min_compile_seconds=0.0)
  stop = threading.Event()
  for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
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
    UserError: the checkpoint is invalid or was trained on regression; the
      address is invalid or in use.
  """
  which = config.eval.checkpoint if config else 'best'
  learner = adaptation.load(checkpoint, which=which, config=config)
  if learner.config.data.name in data.REGRESSIONS:
    raise UserError(
      f'{checkpoint} was trained on regression: use a checkpoint trained on '
      'images'
    )
  with tempfile.TemporaryDirectory(prefix='maml_jax-') as folder:
    os.environ |= {'GRADIO_TEMP_DIR': folder, 'GRADIO_ANALYTICS_ENABLED': '0'}
    name = pathlib.Path(checkpoint).resolve().name
    page = _make_page(learner, pathlib.Path(folder), name)
    try:
      # Gradio would retry forever with a host that it cannot resolve.
      socket.create_server((host, port or 0)).close()
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
      reason = str(getattr(error, 'strerror', None) or error).partition(' (')[0]
      address = host if port is None else f'{host}:{port}'
      raise UserError(f'cannot listen on {address}: {reason}') from error
    try:
      yield url
    finally:
      page.close(verbose=False)


def _make_page(learner, folder: pathlib.Path, title: str) -> gr.Blocks:
  """Returns the page; uploads are in `folder`."""
  spec = data.spec(learner.config.data.name)
  models = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix='models-'))
  uploads = Uploads(folder, spec, models)

  def warn(*messages, seconds: float | None = 10):
    if messages:
      gr.Warning('<br>'.join(map(markup.escape, messages)), duration=seconds)

  def read(source):
    pictures, messages = uploads.read(source)
    warn(*messages, seconds=None)
    return pictures

  def show(examples):
    groups = {name: [] for name, _ in examples}
    for name, picture in examples:
      groups[name].append(picture)
    return examples, ''.join(map(markup.class_html, groups, groups.values()))

  def add(examples, name, source):
    new, name = read(source), ' '.join(name.split())
    if not name:
      warn('enter the name of the class first')
      return *show(examples), keep_drawing(source)
    if not source:
      warn('draw an example first')
    elif len(examples) + len(new) > MAX_EXAMPLES:
      warn(f'at most {MAX_EXAMPLES} examples: nothing was added')
    else:
      examples = [*examples, *((name, picture) for picture in new)]
    return *show(examples), None

  def keep_drawing(source):
    return gr.skip() if is_drawing(source) else None

  def show_shapes():
    names, paths = zip(*markup.draw_shapes(folder), strict=True)
    return show(
      list(zip(names, read_uploads(list(paths), spec)[0], strict=True))
    )

  def learn(examples):
    names, pictures = [x[0] for x in examples], [x[1] for x in examples]
    try:
      if len(set(names)) < 2:
        raise UserError('add examples of two or more classes first')
      classes, labels = encode_labels(names, len(names))
      support = SupportSet(classes.tolist(), pictures, labels)
      program = adaptation.make_adaptation_program(learner, len(classes))
      classifier, predict = adaptation.fit_each_step(
        learner, program, support.pixels, labels, classes
      )
    except (UserError, NonFiniteError) as error:
      text = f'<p><b>{markup.escape(error)}</b></p>'
      yield gr.skip(), text, gr.skip()
      return
    model = pathlib.Path(tempfile.mkdtemp(dir=models), MODEL_FILE)
    classifier.save(model)
    download = gr.DownloadButton(value=str(model), visible=True)
    learned = classes, predict
    yield learned, 'measuring the leave-one-out accuracy ...', download
    left_out = predict_left_out(learner, program, support)
    _, text, warning = describe_left_out(left_out, support)
    text = f'<p>{markup.escape(text)}</p><p><b>{markup.escape(warning)}</b></p>'
    yield learned, text, download

  def ask(learned, source):
    pictures, answers = read(source), []
    for picture in pictures if learned else ():
      classes, predict = learned
      by_step = predict(picture.pixels[None])[:, 0]
      answers.append(markup.prediction_html(picture, classes, by_step))
    if pictures and not learned:
      answers.append('Press Learn first.')
    return ''.join(answers), keep_drawing(source)

  def start_again():
    return *show([]), None, '', gr.DownloadButton(visible=False), ''

  def open_page(request: gr.Request):
    uploads.open_page(request.session_hash)

  def close_page(request: gr.Request):
    uploads.close_page(request.session_hash)

  def add_inputs(name):
    with gr.Tab('Draw'):
      pad = gr.HTML(
        html_template=markup.PAD, js_on_load=markup.PAD_SCRIPT, elem_id=name
      )
      button = gr.Button('Add the drawing', visible=name == 'example')
    with gr.Tab('Webcam'):
      webcam = gr.Image(sources='webcam', height=280)
      # Gradio would decode the image and keep a copy.
      webcam.preprocess = lambda payload: payload and payload.path
    with gr.Tab('Files'):
      files = gr.File(file_count='multiple', height=280)
    return pad, webcam, files, button

  with gr.Blocks(title='maml_jax', analytics_enabled=False) as page:
    examples, learned = gr.State([]), gr.State()
    gr.Markdown(f'# Teach new classes to `{title}`')
    with gr.Row():
      with gr.Column(min_width=300):
        gr.Markdown('### 1. Show a few examples of two or more classes')
        name = gr.Textbox(
          label='Class', max_length=60, placeholder='such as triangle'
        )
        pad, webcam, files, button = add_inputs('example')
        sources = (button.click, pad), (webcam.input, webcam)
        add_events = *sources, (files.upload, files)
        shown = [examples, gr.HTML(elem_id='examples')]
        with gr.Row():
          shapes_button = gr.Button('Use built-in examples', size='sm')
          clear_button = gr.Button('Start again', size='sm')
        learn_button = gr.Button('Learn', variant='primary')
        notes = gr.HTML(elem_id='notes')
        download = gr.DownloadButton('Download the model', visible=False)
      with gr.Column(min_width=300):
        gr.Markdown('### 2. Ask what other images show')
        pad, webcam, files, _ = add_inputs('question')
        answers = gr.HTML(elem_id='answers', apply_default_css=False)
    for event, source in add_events:
      event(add, [examples, name, source], [*shown, source])
    shapes_button.click(show_shapes, None, shown)
    results = [learned, notes, download]
    learning = learn_button.click(learn, examples, results)
    clear_button.click(start_again, None, [*shown, *results, answers])
    sources = (pad.change, pad), (learning.success, pad)
    ask_events = *sources, (webcam.input, webcam), (files.upload, files)
    for event, source in ask_events:
      event(ask, [learned, source], [answers, source])
    page.load(open_page)
    page.unload(close_page)
  return page
