# Every target sets up what it needs: the virtual environment in .venv is made from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo compile pure test test-compiled coverage test-long test-versions lint types hooks lock dist docs bench drill simulate strictness abuse fuzz clean

# Takes the environment of the tests where there is one already, or makes one of an eighth of its size.
demo: $(if $(wildcard .venv/.ready),.venv/.ready,.venv/.demo)
	$(BIN)/balancer demo

# Compiles the modules that pyproject.toml names, in place, which takes about a minute. They refuse to be imported once their
# sources have changed; what tests, measures or packs the sources removes them first.
compile: .venv/.ready pure
	BALANCER_COMPILE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/balancer --version

pure:
	@! find balancer -name '*.so' -delete -print | grep -q . || echo "removed what make compile made: pure Python"

# Tests run in two processes for each core; those on the engine share its state and the machine's time, and run one after the other.
test: .venv/.ready pure
	$(BIN)/pytest --numprocesses auto -m "not long" --ignore tests/engine
	$(BIN)/pytest -m "not long" tests/engine

# What concerns the way of a request, over the compiled build: in a copy, so that the sources here stay pure.
ON_THE_WAY := tests/asgi tests/core tests/dispatch tests/fuzz tests/frontend tests/http tests/members tests/plugins tests/policies \
	tests/process tests/telemetry tests/upstream tests/wire tests/test_builds.py tests/test_cost_per_byte.py tests/test_library.py tests/test_transport.py
test-compiled: build/compiled/.ready
	cd build/compiled && PYTHONPATH=$(CURDIR)/build/compiled ../../$(BIN)/python -m pytest --numprocesses auto \
		$(or $(OPTIONS),-m "not long" $(ON_THE_WAY))

# A copy of what git knows, with what the sources of now have compiled to. (Its version line says so, or make fails.)
build/compiled/.ready: .venv/.ready $(shell git ls-files balancer tests examples worker bench) pyproject.toml setup.py
	rm -rf build/compiled
	mkdir -p build/compiled
	git ls-files -z --cached | xargs -0 cp --parents --target-directory build/compiled
	cd build/compiled && BALANCER_COMPILE=1 ../../$(BIN)/python setup.py --quiet build_ext --inplace
	cd build/compiled && ../../$(BIN)/python -m balancer --version | grep compiled
	touch $@

# Which lines and branches the tests without an engine run, commands that they start included; fails below the floor in
# pyproject.toml.
coverage: .venv/.ready pure
	$(BIN)/pytest --numprocesses auto -m "not long" --ignore tests/engine --cov --cov-report term

# What takes minutes: ten thousand schedules, the soak, drills on the engine.
test-long: .venv/.ready pure
	$(BIN)/pytest --numprocesses auto -m long --ignore tests/engine
	$(BIN)/pytest -m long tests/engine

# Python 3.11 to 3.14, where the machine has them. Options: make test-versions OPTIONS="tests/wire -k worker". What waits
# on sockets and processes for long is left to make test.
PURE := tests/config tests/discovery tests/dispatch tests/http tests/members tests/plugins tests/policies tests/telemetry
SLOW := tests/discovery/test_dns_failures.py tests/discovery/test_headless.py tests/members/test_silence.py \
	tests/plugins/test_installed.py
test-versions: pure
	.ci/test-versions $(or $(OPTIONS),-m "not long" $(PURE) $(SLOW:%=--ignore=%))

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	@! git grep -niE "nobody|somebody|whoever|by and by|told so" -- balancer worker docs README.md README.pt-BR.md
	.ci/commit-subjects

types: .venv/.ready
	$(BIN)/mypy

# Has git run the lint before each commit.
hooks: .venv/.ready
	$(BIN)/pre-commit install

# Every requirements.txt but that of the documentation site, for every Python and platform, in one file. Versions stay while they fit what is required:
# make lock OPTIONS=--upgrade, or "--upgrade-package rich", takes newer ones. The file names no package index. What the images
# install stands, in the same versions, in a requirements.lock with the hashes of all files of each version.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --custom-compile-command "make lock"
LOCKED := balancer/requirements balancer/compile-requirements balancer/http2-requirements balancer/otel-requirements worker/requirements
lock: .venv/.ready
	$(COMPILE) --output-file constraints.txt $(OPTIONS) $(shell git ls-files '*requirements.txt' ':!docs') >/dev/null
	for part in $(LOCKED); do \
		$(COMPILE) --generate-hashes --constraint constraints.txt --output-file $$part.lock $$part.txt >/dev/null || exit 1; \
	done

# Leaves the sdist, the pure wheel and one that is compiled for this Python and machine in dist/, once each wheel has been tried
# in an environment of its own.
dist: .venv/.ready pure build/compiled/.ready
	rm -rf dist build/lib* build/bdist* build/venv build/venv-compiled
	$(BIN)/python -m build --no-isolation --outdir dist
	cd build/compiled && BALANCER_COMPILE=1 ../../$(BIN)/python -m build --no-isolation --wheel --outdir ../../dist
	$(call try,build/venv,$$(echo dist/*-none-any.whl),pure Python)
	$(call try,build/venv-compiled,$$(echo dist/*-cp*.whl),compiled by mypyc)

define try
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt "$(2)[demo]"
	$(BIN)/python -m tests.support.installed $(1)/bin/python "$(3)"
endef

# Options: make bench OPTIONS="--loads get-32 --rounds 2", and see bench/README.md.
bench: .venv/.ready bench/.cache/venv/.ready
	bench/.cache/venv/bin/python -m bench $(OPTIONS)

# Options: make drill OPTIONS="--plain", "--asgi", "--only pause", "--rolling 100000", "--websockets", "--overload", "--ejection" (the last two
# without Docker; BALANCER_ settings from the environment apply; --workers sync,threads,asyncio with --overload). --plain and --asgi go with each other and with the rest.
drill: .venv/.ready
	$(BIN)/python -m bench.drill $(OPTIONS)

# Options: make simulate OPTIONS="--only slow --members 20", "--jobs 2" (a quarter of an hour), and see docs/performance/simulation.md.
simulate: .venv/.ready
	$(BIN)/python -m bench.simulate $(OPTIONS)

# Options: make strictness OPTIONS="--cases chunks" (prints only), and see bench/README.md.
strictness: .venv/.ready bench/.cache/venv/.ready
	bench/.cache/venv/bin/python -m bench.strictness $(OPTIONS)

# Options: make abuse OPTIONS="--rows ping-1,smuggling" (prints only), "--candidates ours", "--seconds 2", and see bench/README.md.
abuse: .venv/.ready
	$(BIN)/python -m bench.abuse $(OPTIONS)

# Options: make fuzz OPTIONS="--seconds 60" (default: half an hour), "--target http2 dns", "--replay FILE"; see docs/fuzzing.md.
fuzz: tests/fuzz/.cache/venv/.ready
	tests/fuzz/.cache/venv/bin/python -m tests.fuzz $(OPTIONS)

# The fuzzer is a compiled extension: where there is none for this Python, nothing is built.
tests/fuzz/.cache/venv/.ready: tests/fuzz/requirements.txt balancer/requirements.txt balancer/http2-requirements.txt constraints.txt
	$(PYTHON) -m venv tests/fuzz/.cache/venv
	tests/fuzz/.cache/venv/bin/pip install --quiet --disable-pip-version-check --only-binary atheris \
		--constraint constraints.txt --requirement tests/fuzz/requirements.txt || { echo \
		"make fuzz: atheris has no build for $$($(PYTHON) --version) on this machine; 3.11 to 3.14 on Linux, x86-64, have" \
		"one: make fuzz PYTHON=python3.11" >&2; exit 1; }
	tests/fuzz/.cache/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement balancer/requirements.txt --requirement balancer/http2-requirements.txt
	touch $@

# What only the bench needs has an environment of its own, beside the same versions of what the balancer needs.
bench/.cache/venv/.ready: bench/requirements.txt balancer/requirements.txt balancer/http2-requirements.txt constraints.txt
	$(PYTHON) -m venv bench/.cache/venv
	bench/.cache/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement balancer/requirements.txt --requirement balancer/http2-requirements.txt \
		--requirement bench/requirements.txt
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

PARTS := constraints.txt pyproject.toml setup.py balancer/requirements.txt balancer/compile-requirements.txt balancer/demo/requirements.txt worker/requirements.txt

# For `make demo`, and for the commands in the guides: without what lints and tests.
.venv/.demo: $(PARTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv/.ready: $(PARTS) balancer/http2-requirements.txt balancer/otel-requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,http2,otel]'
	touch .venv/.demo $@

clean: pure
	rm -rf .venv .cache build dist docs/.cache bench/.cache tests/fuzz/.cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
