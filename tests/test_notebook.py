"""The notebook runs top to bottom, in a kernel of its own."""

import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = pathlib.Path(__file__).parent.parent
NOTEBOOK = REPOSITORY / 'notebooks' / 'quickstart.ipynb'


@pytest.fixture(scope='module')
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_small_and_valid(notebook):
  nbformat.validate(notebook)
  assert NOTEBOOK.stat().st_size < 300_000


def test_address_is_named_once(notebook):
  assert NOTEBOOK.read_text().count('https://github.com/') == 1


def test_notebook_runs(notebook, glyphs, tmp_path, monkeypatch):
  """Shortened, offline, and with what it says it has learned."""
  for name, value in {
    'MAML_JAX_MINUTES': '0',
    'MAML_JAX_DATA': str(glyphs),
    'MAML_JAX_CACHE': str(tmp_path),
    'PIP_NO_INDEX': '1',
    'https_proxy': 'http://127.0.0.1:9',
    'MPLBACKEND': '',
  }.items():
    monkeypatch.setenv(name, value)
  NotebookClient(
    notebook,
    kernel_name='python3',
    startup_timeout=300,
    timeout=600,
    resources={'metadata': {'path': str(NOTEBOOK.parent)}},
  ).execute()

  outputs = [o for cell in notebook.cells for o in cell.get('outputs', ())]
  pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
  assert len(pictures) == 4
  said = ''.join(o.get('text', '') for o in outputs)
  assert int(re.search(r'(\d+) of 25 right', said)[1]) >= 15
  measured = re.findall(r'([\d.]+)% ± [\d.]+% right, (\w+)', said)
  assert [kind for _, kind in measured] == ['transductive'] * 2 + ['inductive']
  assert all(float(accuracy) > 80 for accuracy, _ in measured)
  trained = re.findall(r'\d+ meta-iterations of 16 tasks: ([\d.]+)%', said)
  assert len(trained) == 2 and all(float(value) > 20 for value in trained)
