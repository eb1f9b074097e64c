# `make demo` and `make test` need Python 3.11 to 3.13, pip and make: each makes the virtual environment it needs, once.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo

# pip compiles one file after the other; some that packages bring are none for this Python
define install
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable "$(1)"
	$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
endef

# two installations in one environment would meet
.NOTPARALLEL:

.PHONY: demo docs test test-fast lint format clean

# two workers for two cores; each keeps its own TensorFlow, and files come in the order of tests/conftest.py;
# the slowest are named at the end
TEST = $(VENV)/bin/python -m pytest -n $${PYTEST_WORKERS:-2} --dist loadfile --no-loadscope-reorder --durations=15

test: $(VENV)/.test lint
	$(TEST)

# without what takes more than about a second: what traces graphs or starts processes
test-fast: $(VENV)/.test lint
	$(TEST) -m "not slow"

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# build/site/index.html; needs nothing from elsewhere to be read
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

demo: $(VENV)/.install
	$(VENV)/bin/python train/run.py --preset demo --run $(RUN)

$(VENV)/.install: setup.py
	$(call install,.)
	touch $@

$(VENV)/.test: setup.py
	$(call install,.[test])
	touch $(VENV)/.install $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
