PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
DEMO := demo
SHIPPED := $(DEMO)/shipped

.DEFAULT_GOAL := help
.PHONY: help install demo encoder notes detector docs test check clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

install: .venv/installed ## create .venv with medbert and all that its tests need

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch -c constraints.txt
	$(PIP) --editable '.[test,outside]' -c constraints.txt
	touch $@

demo: .venv/installed ## invent 50,000 lives, pretrain, predict heart failure in diabetics, open the report
	$(BIN)/medbert synthesize n_subjects=50000 seed=1 out=$(DEMO)/events overwrite=true
	$(BIN)/medbert prepare source=meds source.path=$(DEMO)/events out=$(DEMO)/store overwrite=true
	$(BIN)/medbert pretrain store=$(DEMO)/store encoder=tiny max_tokens=128 trainer.max_epochs=8 out=$(DEMO)/encoder overwrite=true
	$(BIN)/medbert finetune store=$(DEMO)/store encoder_dir=$(DEMO)/encoder task=dhf head=frozen_logistic out=$(DEMO)/run overwrite=true
	$(BIN)/medbert evaluate run=$(DEMO)/run out=$(DEMO)/report overwrite=true
	@echo "The report: $(CURDIR)/$(DEMO)/report/report.html"

encoder: .venv/installed ## train and audit the small encoder that is shipped, on an invented cohort (20 minutes on two fast cores)
	$(BIN)/medbert synthesize n_subjects=430000 seed=31 out=$(SHIPPED)/events overwrite=true
	$(BIN)/medbert prepare source=meds source.path=$(SHIPPED)/events out=$(SHIPPED)/store overwrite=true
	$(BIN)/medbert audit plant store=$(SHIPPED)/store 'repeats=[1]' out=$(SHIPPED)/planted overwrite=true
	$(BIN)/medbert pretrain store=$(SHIPPED)/planted experiment=foretell trainer.max_epochs=2 out=$(SHIPPED)/encoder overwrite=true
	$(BIN)/medbert audit store=$(SHIPPED)/planted encoder_dir=$(SHIPPED)/encoder out=$(SHIPPED)/audit overwrite=true
	$(BIN)/python -c "import medbert; medbert.Encoder.from_pretrained('$(SHIPPED)/encoder').save_pretrained('data_synthetic/encoder', overwrite=True, license='apache-2.0', data_statement='430,000 invented lives (medbert synthesize, seed 31): no records of people.')"

notes: .venv/installed ## invent the notes that are shipped
	$(BIN)/medbert synthesize notes out=$(SHIPPED)/notes overwrite=true
	cp $(SHIPPED)/notes/notes.jsonl data_synthetic/notes/

# CARRIERS: MTS-Dialog-TrainingSet.csv, NorMedQA as JSON, norne_nob.conll.gz, norne_nno.conll.gz (see benchmarks/carriers.py)
detector: .venv/installed ## train the small detector of names that is shipped (minutes): make detector CARRIERS="..."
	$(BIN)/medbert synthesize notes n_patients=90 wide=true noise=0.3 seed=101 out=$(SHIPPED)/train overwrite=true
	$(BIN)/medbert synthesize notes n_patients=20 wide=true noise=0.3 seed=202 out=$(SHIPPED)/tuning overwrite=true
	$(BIN)/python benchmarks/carriers.py $(SHIPPED)/train/carriers.jsonl $(CARRIERS)
	$(BIN)/medbert train detector notes=$(SHIPPED)/train tuning=$(SHIPPED)/tuning fine=false '+labels={DATE: null, AGE: null, ID: null, CONTACT: null}' learner.max_iterations=40 out=$(SHIPPED)/detector overwrite=true
	$(BIN)/python -c "from medbert.text.detectors.thresholds import load_detector as load; d = load('$(SHIPPED)/detector'); d.points = {'recall': {'*': 0.3}, 'f1': {'*': 1.0}}; d.save('medbert/text/data/detector')"

test: .venv/installed ## run the tests, a process a core, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist loadfile

check: .venv/installed ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed ## build the documentation: docs/_build/index.html
	$(PIP) --editable '.[docs]' -c constraints.txt
	$(BIN)/python -m sphinx --quiet -W --keep-going -b html docs docs/_build

clean: ## remove everything that make made
	rm -rf .venv $(DEMO) build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
