# `make` lists the targets. Their work is in scripts/setup.py, which needs a Python and nothing installed.

PORT = 8501
HOST = localhost
ARGS =

# Sets $$python: PYTHON=… if given, else the environment's own (so that one made with PYTHON=… stays), else the first
# that is new enough.
define find_python
python=; for candidate in $(if $(PYTHON),"$(PYTHON)",.venv/bin/python python3 python3.13 python3.12 python3.11); do \
	if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
	echo "$(if $(PYTHON),$(PYTHON) is no,Found no) Python 3.11 or newer. Install one, or name it: make PYTHON=/path/to/python3.12 $@" >&2; \
	exit 1; \
fi
endef

.PHONY: help setup chat test slow

help:
	@echo "make setup   make the environment in .venv (about 6 minutes, once)"
	@echo "make chat    open the chat page on http://$(HOST):$(PORT); others: make chat PORT=8502 HOST=0.0.0.0"
	@echo "make test    lint, types and tests; options for pytest: make test ARGS='-k citation'"
	@echo "make slow    the tests that make test leaves out: sweeps of kills and the like, a few minutes"
	@echo "All take PYTHON=/path/to/python, 3.11 or newer."

setup:
	@$(find_python); exec "$$python" scripts/setup.py

chat:
	@$(find_python); exec "$$python" scripts/setup.py chat "$(PORT)" "$(HOST)"

test:
	@$(find_python); exec "$$python" scripts/setup.py test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
	.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

slow:
	@$(find_python); exec "$$python" scripts/setup.py test
	.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m slow $(ARGS)
