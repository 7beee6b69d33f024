# `make demo` trains a first network, `make test` runs the tests; each sets everything up by itself.
# PYTHON is any Python of 3.11 or later, VENV where the environment is made.
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test chaos lint results

demo: $(INSTALLED)
	$(VENV)/bin/python train.py data=digits model=vgg2 reg=shift \
	    optimizer=adam optimizer.lr=0.003 scheduler=one_cycle trainer.max_epochs=8

# the README's table of results, from the records in results/
results: $(INSTALLED)
	$(VENV)/bin/python -m cifarlab.report.readme

# two processes of one thread each: most tests are too small to share
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

# what the README promises of kills, full disks, damaged and hostile files, tried as often as it says there
chaos: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/chaos --chaos -n 2 --dist loadfile

lint: $(INSTALLED)
	$(VENV)/bin/python -m ruff check
	$(VENV)/bin/python -m ruff format --check
	$(VENV)/bin/python -m mypy

$(INSTALLED): pyproject.toml requirements/tested.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -e '.[dev]'
	touch $@
