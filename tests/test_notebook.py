"""Tests of the notebook, executed in its own kernel."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = pathlib.Path(__file__).parent.parent
NOTEBOOK = REPOSITORY / 'notebooks' / 'quickstart.ipynb'


@pytest.fixture(scope='module')
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_notebook_is_valid_and_has_no_outputs(notebook):
  nbformat.validate(notebook)
  assert not any(cell.outputs for cell in code_cells(notebook))


def test_first_cell_outside_a_clone_says_what_to_set(notebook, tmp_path):
  source = code_cells(notebook)[0].source
  done = subprocess.run(
    [sys.executable, '-I', '-S', '-c', source],  # without installed packages
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.startswith('set CLONE')
  assert done.stderr.count('\n') == 1


@pytest.mark.slow
def test_notebook_runs(notebook, glyphs, tmp_path, monkeypatch):
  """Meta-trains for one call only, and without network access."""
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

  outputs = [x for cell in code_cells(notebook) for x in cell.outputs]
  assert sum('image/png' in x.get('data', {}) for x in outputs) == 4
  pages = [x['data'].get('text/html', '') for x in outputs if 'data' in x]
  is_shown = any('<iframe src="http://127.0.0.1:' in page for page in pages)
  assert is_shown == bool(importlib.util.find_spec('gradio'))
  printed = ''.join(x.get('text', '') for x in outputs)
  assert int(re.search(r'(\d+) of 25 correct', printed)[1]) >= 15
  evaluated = re.findall(r'accuracy ([\d.]+)% ± [\d.]+%, (\w+)', printed)
  assert [protocol for _, protocol in evaluated] == [
    'transductive',
    'transductive',
    'inductive',
  ]
  assert all(float(accuracy) > 80 for accuracy, _ in evaluated)
  trained = re.findall(
    r'\d+ meta-iterations of 16 tasks: accuracy ([\d.]+)%', printed
  )
  assert len(trained) == 2 and all(float(value) > 20 for value in trained)
