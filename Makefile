PYTHON ?= python3
VENV := .venv/bin

.PHONY: env demo test

env: .venv/.installed

.venv/.installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

test: env
	$(VENV)/ruff check .
	$(VENV)/python -m pytest -n 2

demo: env
	$(VENV)/python -m experiments.demo --out=runs/demo
