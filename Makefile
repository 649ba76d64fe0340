# `make demo` and `make test` are all one needs: each installs what it lacks.
# `make docs` builds docs/ into site/, to be opened at site/index.html.
#   PYTHON=python3.12   the interpreter to build .venv with (3.11 or newer)
#   EXTRAS=dev,cuda     the extras to install: dev, cuda, tpu
#   ARGS='-k norm'      passed on to pytest or to main.py

EXTRAS ?= dev
CANDIDATES = $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)
SUITABLE = import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

.PHONY: demo test lint docs

demo: .venv/installed
	.venv/bin/python main.py --config=configs/glyphs_5w1s.py --mode=demo $(ARGS)

test: .venv/installed
	.venv/bin/python -m pytest -n 2 $(ARGS)

lint: .venv/installed
	.venv/bin/ruff check .

docs: .venv/installed
	.venv/bin/python -m mkdocs build --strict

# Newest first. A candidate is run, not looked up: a name on PATH may be the
# stub of a version manager, and Debian's python3 may lack ensurepip.
.venv/installed: pyproject.toml
	@set -e; for python in $(CANDIDATES); do \
	  if $$python -c '$(SUITABLE)' 2>/dev/null; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'error: no Python 3.11 or newer with venv and pip among:' \
	    '$(CANDIDATES); name one with PYTHON=/path/to/python3' >&2; exit 1; \
	fi; \
	[ -x .venv/bin/python ] || $$python -m venv .venv; \
	echo "installing into .venv ($$(.venv/bin/python -V)): a few minutes"; \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[$(EXTRAS)]'; \
	touch $@
