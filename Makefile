# Every target sets up what it needs: the virtual environment in .venv is made from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types bench drill simulate strictness fuzz docs clean

demo: .venv/.ready
	$(BIN)/balancer demo

test: .venv/.ready
	$(BIN)/pytest

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.ready
	$(BIN)/mypy

# Options: make bench OPTIONS="--loads get-32 --rounds 2", and see bench/README.md.
bench: .venv/.ready bench/.cache/venv/.ready
	bench/.cache/venv/bin/python -m bench $(OPTIONS)

# Options: make drill OPTIONS="--plain", "--asgi", "--only pause", "--rolling 100000", "--websockets", "--overload" (the last
# without Docker; BALANCER_ settings from the environment apply). --plain and --asgi go with each other and with the rest.
drill: .venv/.ready
	$(BIN)/python -m bench.drill $(OPTIONS)

# Options: make simulate OPTIONS="--only slow --members 20", "--jobs 2" (a quarter of an hour), and see docs/performance/simulation.md.
simulate: .venv/.ready
	$(BIN)/python -m bench.simulate $(OPTIONS)

# Options: make strictness OPTIONS="--cases chunks" (prints only), and see bench/README.md.
strictness: .venv/.ready bench/.cache/venv/.ready
	bench/.cache/venv/bin/python -m bench.strictness $(OPTIONS)

# Options: make fuzz OPTIONS="--seconds 60" (default: half an hour), "--replay FILE"; see docs/fuzzing.md.
fuzz: tests/fuzz/.cache/venv/.ready
	tests/fuzz/.cache/venv/bin/python -m tests.fuzz $(OPTIONS)

# The fuzzer is a compiled extension: where there is none for this Python, nothing is built.
tests/fuzz/.cache/venv/.ready: tests/fuzz/requirements.txt tests/fuzz/constraints.txt balancer/requirements.txt constraints.txt
	$(PYTHON) -m venv tests/fuzz/.cache/venv
	tests/fuzz/.cache/venv/bin/pip install --quiet --disable-pip-version-check --only-binary atheris \
		--constraint tests/fuzz/constraints.txt --requirement tests/fuzz/requirements.txt || { echo \
		"make fuzz: atheris has no build for $$($(PYTHON) --version) on this machine; 3.11 to 3.14 on Linux, x86-64, have" \
		"one: make fuzz PYTHON=python3.11" >&2; exit 1; }
	tests/fuzz/.cache/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement balancer/requirements.txt
	touch $@

# What only the bench needs has an environment of its own, beside the same versions of what the balancer needs.
bench/.cache/venv/.ready: bench/requirements.txt bench/constraints.txt balancer/requirements.txt constraints.txt
	$(PYTHON) -m venv bench/.cache/venv
	bench/.cache/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--constraint bench/constraints.txt --requirement balancer/requirements.txt --requirement bench/requirements.txt
	touch $@

# The documentation site in build/site; a broken link or a page outside of the navigation fails it.
docs: .venv/.ready docs/.cache/venv/.ready
	$(BIN)/python -m docs.site.reference
	NO_MKDOCS_2_WARNING=1 docs/.cache/venv/bin/mkdocs build --quiet

docs/.cache/venv/.ready: docs/requirements.txt docs/constraints.txt
	$(PYTHON) -m venv docs/.cache/venv
	docs/.cache/venv/bin/pip install --quiet --disable-pip-version-check --constraint docs/constraints.txt \
		--requirement docs/requirements.txt
	touch $@

NEEDS := balancer/requirements.txt balancer/http2-requirements.txt balancer/otel-requirements.txt balancer/demo/requirements.txt \
	worker/requirements.txt tests/requirements.txt

.venv/.ready: constraints.txt pyproject.toml $(NEEDS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,http2,otel]'
	touch $@

clean:
	rm -rf .venv build/site docs/.cache bench/.cache tests/fuzz/.cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
