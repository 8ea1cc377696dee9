PYTHON ?= python3
# What runs the demo and builds the wheel: the environment that is there, by default the full one.
ENV := $(if $(wildcard .venv/.installed),.venv,$(if $(wildcard .venv-light/.installed),.venv-light,.venv))

.PHONY: env env-light demo test test-quick test-latest soak wheel docs tutorials

env: .venv/.installed

env-light: .venv-light/.installed  # without PyTorch: no neural image encoders

.venv/.installed: requirements.txt requirements-light.txt
.venv-light/.installed: requirements-light.txt

%/.installed:
	$(PYTHON) -m venv $*
	$*/bin/pip install --quiet --disable-pip-version-check -r $<
	$*/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

test: env
	.venv/bin/ruff check .
	.venv/bin/python -m pytest -n 2 --dist loadfile

test-quick: env
	.venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

test-latest:  # with the newest releases within the ranges of pyproject.toml
	rm -rf .venv-latest
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/pip install --quiet --disable-pip-version-check -e '.[extract,transformers,analyses,sweeps,dev]'
	.venv-latest/bin/python -m pytest -n 2 --dist loadfile

soak: env  # faults at random, at most MINUTES
	.venv/bin/python -W ignore -m tests.soak $(or $(MINUTES),50)

demo: $(ENV)/.installed
	$(ENV)/bin/python -m experiments.demo --out=runs/demo

wheel: $(ENV)/.installed
	rm -rf dist
	$(ENV)/bin/python -m build --no-isolation

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

tutorials: .venv/.docs
	PATH=$(CURDIR)/.venv/bin:$$PATH jupytext --to notebook --set-kernel python3 --execute docs/tutorials/*.py

.venv/.docs: requirements-docs.txt .venv/.installed
	.venv/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@
