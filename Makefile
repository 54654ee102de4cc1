# Every target sets up what it needs: the virtual environment in .venv is made from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types clean

demo: .venv/.ready
	$(BIN)/balancer demo

test: .venv/.ready
	$(BIN)/pytest

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.ready
	$(BIN)/mypy

.venv/.ready: constraints.txt pyproject.toml $(wildcard */requirements.txt) balancer/demo/requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
