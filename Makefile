PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint

demo: .venv/ready
	$(BIN)/python train.py --config configs/shapes.py --workdir runs/shapes

# As many workers as there are cores. Each has files that lie together, whose fixtures
# are then made once, and takes over tests of others when it has no more of its own.
test: .venv/ready-test
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/ready-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

.venv/ready: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxseg needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
