# Two commands for a newcomer: `make demo` and `make test`. Both make the same .venv first.
# `make test-oldest` takes Python 3.10 where it finds one; name it with PYTHON_OLDEST=.
PYTHON ?= python3
PY = .venv/bin/python
DEMO = --device cpu
OLDEST = .venv-oldest/bin/python
PYTHON_OLDEST ?= $(shell python3.10 -c 'print("python3.10")' 2>/dev/null || echo $(PYTHON))

# Threads that wait do not take the processor from those that they wait for (see utils.py).
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test proof test-oldest coverage lint pictures clean

.venv/installed: requirements.txt requirements-dev.txt
	@echo "== making .venv and installing requirements.txt and requirements-dev.txt (a few minutes, once)"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: .venv/installed
	@echo "== 1/4 clearing ./demo, where everything of this demo goes"
	rm -rf demo
	@echo "== 2/4 drawing people who do not exist, into demo/data"
	$(PY) -m tools.sample_data --out demo/data --people 60 --eval-people 36
	@echo "== 3/4 training five folds of EfficientNet-lite0 on its ImageNet weights (about a minute and a half on two free cores)"
	$(PY) train.py --cv 5 --train-root demo/data/train --save-path demo/saved_models --backbone efficientnet-lite0 \
	    --image-size 80 --batch-size 16 --epochs 7 --transform-type facecrop $(DEMO)
	@echo "== 4/4 answering the evaluation photographs with an ensemble of the folds, and scoring it"
	$(PY) submit_ensemble.py --root demo/saved_models --data-root demo/data/eval --save-path demo/prediction --top-k 1 --transform-type auto \
	    --answers demo/data/eval/answers.csv $(DEMO)
	@echo "== done: open $$(ls -d demo/saved_models/*/report.html) and $$(ls -d demo/prediction/*/report.html) in a browser"
	@echo "== now your own data: put it into input/data as the README says, then"
	@echo "   $(PY) train.py --task main --cv 5"

test: .venv/installed
	@echo "== running the tests, in two processes (about four minutes on two cores)"
	$(PY) -m pytest -n 2 --dist loadfile

proof: .venv/installed
	@echo "== every crash point, every failing call, two commands at once, kills, damage, memory (up to an hour; the same command goes on)"
	$(PY) -m tests.helpers.proof --folder proof

.venv-oldest/installed: requirements.txt requirements-dev.txt requirements-oldest.txt
	@echo "== making .venv-oldest with the oldest versions that requirements.txt allows (a few minutes, once)"
	$(PYTHON_OLDEST) -m venv .venv-oldest
	$(OLDEST) -m pip install --quiet --disable-pip-version-check -c requirements-oldest.txt -r requirements.txt -r requirements-dev.txt
	@touch $@

test-oldest: .venv-oldest/installed
	@echo "== running the tests on the oldest versions that requirements.txt allows, in two processes"
	$(OLDEST) -m pytest -n 2 --dist loadfile

coverage: .venv/installed
	@echo "== running the tests and counting the lines and branches that they reach (about six minutes on two cores)"
	$(PY) -m pytest -n 2 --dist loadfile --cov --cov-report=term

lint: .venv/installed
	@echo "== ruff and mypy"
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

pictures: .venv/installed
	@echo "== drawing the README's pictures from ./demo (run make demo first)"
	$(PY) docs/pictures.py

clean:
	rm -rf demo proof .venv .venv-oldest .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
