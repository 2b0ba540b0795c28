# Two commands: `make dev` runs the whole system, `make test` passes the tests. Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: dev test check clean

dev: $(INSTALLED)
	$(BIN)/pushgate dev

test: $(INSTALLED)
	$(BIN)/pytest

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,test]'
	touch $@

clean:
	rm -rf .venv .pushgate
