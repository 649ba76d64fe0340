# `make demo` and `make test` install what is missing and run.
#
#   make demo      train, evaluate and plot on the built-in glyphs
#   make test      the fast tests (10 minutes on two cores)
#   make test-all  all tests
#   make test-training  train every method on glyphs (40 minutes)
#   make test-methods   compare every method with op-by-op execution (20 minutes)
#   make lint      check format, lint and types
#   make format    apply them
#   make docs      build docs/ into site/, to be opened at site/index.html
#   make aot       create .venv-aot, to compile for TPUs without one; with
#                  EXTRAS=cuda, for NVIDIA GPUs, too (4 GB)
#   make gallery   redraw the figures of docs/gallery.md (10 minutes)
#
#   PYTHON=python3.12   the interpreter that creates .venv (3.11 or newer)
#   EXTRAS=dev,cuda     the extras to install; `dev` includes `train`
#   ARGS='-k norm'      passed to pytest or main.py

EXTRAS ?= dev
GALLERY = oscillator neural_field segmentation
CANDIDATES = $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)
SUITABLE = import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

.PHONY: demo test test-all test-training test-methods lint format docs aot \
  gallery

demo: .venv/installed
	.venv/bin/python main.py --config=glyphs_5w1s --mode=demo $(ARGS)

test: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist worksteal -m 'not slow' $(ARGS)

test-all: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

test-training: .venv/installed
	.venv/bin/python -m pytest -rA tests/check_training.py $(ARGS)

test-methods: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist worksteal tests/check_methods.py $(ARGS)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	@if .venv/bin/pyright --version >/dev/null 2>&1; then \
	  .venv/bin/pyright --pythonpath .venv/bin/python; \
	else \
	  echo 'pyright does not run here (it needs node): types are not checked'; \
	fi

format: .venv/installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: .venv/installed
	.venv/bin/python -m mkdocs build --strict

# With the Python of .venv. pip installs what EXTRAS adds into the same place.
aot: .venv/installed
	@[ -x .venv-aot/bin/python ] || .venv/bin/python -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[aot$(if $(filter cuda,$(EXTRAS)),$(comma)cuda)]'

comma := ,

gallery: .venv/installed
	for name in $(GALLERY); do \
	  .venv/bin/python examples/$$name.py --output=docs/img/$$name.png \
	    || exit 1; \
	done

# Newest first. Each candidate is executed: a name on PATH may be the stub of a
# version manager, and Debian's python3 may lack ensurepip.
.venv/installed: pyproject.toml
	@set -e; for python in $(CANDIDATES); do \
	  if $$python -c '$(SUITABLE)' 2>/dev/null; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'error: no Python 3.11 or newer with venv and pip among:' \
	    '$(CANDIDATES); set PYTHON=/path/to/python3' >&2; exit 1; \
	fi; \
	[ -x .venv/bin/python ] || $$python -m venv .venv; \
	echo "installing into .venv ($$(.venv/bin/python -V)): a few minutes"; \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[$(EXTRAS)]'; \
	touch $@
