# Everything runs in .venv; a target sets up what it needs and no more.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NATIVE := setup.py $(wildcard drivetrain/*/native/*.[ch])
PEERS := $(patsubst bench/peers/%.txt,$(VENV)/peers/%/.done,$(wildcard bench/peers/*.txt))

.PHONY: help run stop test test-fast lint types format bench-setup bench clean system-packages

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

run: $(VENV)/.run ## from raw flights to a served model: trains, serves, predicts, leaves the URL
	$(BIN)/python examples/tour.py

stop: ## end the server that `make run` left
	@$(BIN)/python examples/tour.py --stop

test: $(VENV)/.test system-packages ## set up and run every test, with lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	@.ci/test

test-fast: $(VENV)/.test ## the tests that take no more than a moment each
	$(BIN)/python -m pytest -m "not slow" -x

lint: $(VENV)/.test ## format and rules, as CI holds them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test ## pyright, strict on the core
	$(BIN)/pyright

format: $(VENV)/.test ## write the format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-setup: $(VENV)/.bench $(PEERS) ## install the peers that the benchmarks compare with
	@sh .ci/install-system-packages bench-packages

bench: bench-setup ## print the figures, peer and project in one run
	@failed=0; for figures in main_path serving training streams recommender telemetry placement weights; do \
	    $(BIN)/python bench/$$figures.py --quick --json || failed=1; done; exit $$failed

clean: ## forget the environment and all that runs kept
	rm -rf $(VENV) .drivetrain

system-packages: ## servers that some tests talk to, from the system's package manager
	@sh .ci/install-system-packages

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(PIP) -e '.[all,examples]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(PIP) -e '.[test,lint]'
	@$(PIP) -e '.[retrieval]' || \
	    echo "*** NOT INSTALLED: hnswlib, which wants a C++ compiler. Its tests are left out." >&2
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) -e '.[bench]'
	@touch $@

# Servers whose packages clash with ours have an environment each. One that cannot be had is left out.
$(VENV)/peers/%/.done: bench/peers/%.txt $(BIN)/python
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D) && $(@D)/bin/python -m pip install --quiet \
	    --disable-pip-version-check -r $< && touch $@ || \
	    echo "*** NOT INSTALLED: the peer $*; its figures are absent." >&2
