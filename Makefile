# Every task of people and of CI; `make help` lists them. Each target makes the environment in $(VENV) first.
# Extra Hydra overrides go in ARGS: make run-demo ARGS="tasks.limit=8 storage.run_dir=runs/small"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Tests at a time.
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed
EXPERIMENTS := $(patsubst conf/experiment/%.yaml,%,$(wildcard conf/experiment/*.yaml))
RUNS := $(EXPERIMENTS:%=run-%)
WATCHES := $(EXPERIMENTS:%=watch-%)
PLANS := $(EXPERIMENTS:%=plan-%)
SIMS := $(EXPERIMENTS:%=sim-%)
# Experiments on a TPU pod are compiled for it first.
COMPILER := $(VENV)/.compiler
ON_THIS_MACHINE := rehearsal $(patsubst conf/experiment/%.yaml,%,$(shell grep -l 'override /pod: local' conf/experiment/*.yaml))
ON_TPU := $(filter-out $(ON_THIS_MACHINE),$(EXPERIMENTS))

SMOKE := $(wildcard tests/test_imports.py tests/launch/test_launch_main.py tests/models/test_models.py tests/reading/test_dataset.py)

DEMO_MODEL := runs/models/SmolLM2-135M-Instruct
# 32 layers, so that the layer numbers of every experiment exist in it.
SIM_MODEL := runs/models/tiny-qwen2
SIM_OVERRIDES = pod.kind=local pod.accelerator_type=null pod.arrival_timeout_s=120 model.path=$(SIM_MODEL) \
	model.dtype=float32 tasks=arc_sample extract.seq_len=256 extract.too_long=tail extract.save_every_n_samples=4 \
	train.tokens=null train.steps=12 train.batch_rows=1024 train.buffer_rows=4096 train.statistics_rows=2048 train.epochs=9

.DEFAULT_GOAL := help
.PHONY: help install demo demo-sae rehearse test test-pods smoke chaos plans bench fuzz docs lint constraints clean $(RUNS) $(WATCHES) $(PLANS) $(SIMS)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@echo; printf '  %-22s %s\n' 'make plan-EXPERIMENT' 'show mesh, hosts, batches and the command of each host; start nothing' \
	  'make run-EXPERIMENT' 'run the job' 'make watch-EXPERIMENT' 'run it to its end, through preemptions and lost hosts' \
	  'make sim-EXPERIMENT' 'run its pod shape, mesh and taps on this machine, with a tiny random model'
	@printf '\n  experiments\n'
	@for name in $(EXPERIMENTS); do \
	  printf '  %-20s %s\n' "$$name" "$$(sed -n '2s/^# //p' "conf/experiment/$$name.yaml")"; \
	done

install: $(DEVELOPED) ## make the environment in .venv with all tools of development (every other target makes what it needs)

demo: $(INSTALLED) ## run a real model on real prompts with a pod of four processes and a bucket, all on this machine; four minutes on two cores
	$(BIN)/python -m tools.demo

demo-sae: $(INSTALLED) ## train an SAE on a real model and real text, on this machine, to a page with its latents; ten minutes on two cores
	$(BIN)/python -m tools.demo_sae $(ARGS)

rehearse: $(DEVELOPED) $(SIM_MODEL)/config.json ## rehearse a job on 16 workers, from nothing to its end: real gcloud and ssh, simulated cloud
	$(BIN)/python -m tools.fakepod runs/rehearsal $(SIM_MODEL) $(BIN)/pod-job watch experiment=rehearsal --no-preflight $(ARGS)

test: $(DEVELOPED) $(DEMO_MODEL)/config.json ## run the tests, except those that take longer
	$(BIN)/python -m pytest -m "not pod and not slow" -n $(WORKERS) --dist worksteal $(ARGS)

test-pods: $(DEVELOPED) $(DEMO_MODEL)/config.json ## the other tests: whole jobs on many processes, with faults and in a simulated cloud, and what is slow
	$(BIN)/python -m pytest -m "pod or slow" -n $(WORKERS) --dist loadfile $(ARGS)

smoke: $(DEVELOPED) ## run the tests that use most of jax, for a second Python
	$(BIN)/python -m pytest $(SMOKE) $(ARGS)

chaos: $(DEVELOPED) ## kill pods 300 times, at random and at every step of a commit, on disk and in a bucket; an hour
	rm -rf runs/chaos
	$(BIN)/python -m tools.chaos runs/chaos --runs 300 $(ARGS)

plans: $(COMPILER) ## write docs/plans.md: memory, time and cost of each experiment (needs libtpu, no TPU)
	$(BIN)/python -m tools.plans

bench: $(DEVELOPED) $(DEMO_MODEL)/config.json ## write docs/benchmarks.md: ours beside alternatives; ARGS=storage measures other cases, ARGS=--list shows all
	$(BIN)/python -m tools.bench $(ARGS)

fuzz: $(DEVELOPED) ## read 10,000 corrupted files, each refused by name or read unchanged; minutes
	$(BIN)/python -m tools.fuzz $(ARGS)

docs: $(DEVELOPED) ## write docs/configuration.md, docs/model-configs.md, docs/api.md and the table of docs/commands.md from the code
	$(BIN)/python -m tools.config_reference > docs/configuration.new
	mv docs/configuration.new docs/configuration.md
	$(BIN)/python -m tools.model_config_reference > docs/model-configs.new
	mv docs/model-configs.new docs/model-configs.md
	$(BIN)/python -m tools.api_reference > docs/api.new
	mv docs/api.new docs/api.md
	$(BIN)/python -m tools.verb_reference

lint: $(DEVELOPED) ## run ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

constraints: $(DEVELOPED) ## pin the newest versions of all dependencies in constraints.txt
	$(BIN)/python -m pip install --quiet uv
	{ echo '# Exact versions for Python 3.11 and newer; made by: make constraints'; \
	  $(BIN)/uv pip compile pyproject.toml --extra dev --extra preflight --universal --python-version 3.11 --upgrade --no-header \
	    --no-annotate --no-emit-index-url --no-emit-find-links --quiet; } > constraints.new
	mv constraints.new constraints.txt

clean: ## remove the environment and everything that runs left behind
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis

$(RUNS): run-%: $(INSTALLED)
	$(BIN)/pod-job run experiment=$* $(ARGS)

$(WATCHES): watch-%: $(INSTALLED)
	$(BIN)/pod-job watch experiment=$* $(ARGS)

$(PLANS): plan-%: $(INSTALLED)
	$(BIN)/pod-job plan experiment=$* $(ARGS)

$(ON_TPU:%=plan-%) $(ON_TPU:%=run-%) $(ON_TPU:%=watch-%): $(COMPILER)

# Its workers have fewer devices than the slice it is named after.
plan-rehearsal run-rehearsal watch-rehearsal: ARGS += --no-preflight

$(SIMS): sim-%: $(INSTALLED) $(SIM_MODEL)/config.json
	rm -rf runs/sim-$*
	$(BIN)/pod-job run experiment=$* $(SIM_OVERRIDES) storage.run_dir=runs/sim-$* $(ARGS)

$(DEMO_MODEL)/config.json: | $(INSTALLED)
	$(BIN)/python -m tools.demo_model $(DEMO_MODEL)

$(SIM_MODEL)/config.json: tools/tiny_model.py | $(INSTALLED)
	rm -rf $(SIM_MODEL)
	$(BIN)/python -m tools.tiny_model $(SIM_MODEL) --layers 32

# uv makes the environment in seconds where it is installed; --seed puts pip into it, as venv does.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1), older than 3.11; use make PYTHON=python3.12" >&2; exit 2; }
	rm -rf $(VENV)
	@if command -v uv >/dev/null 2>&1; then set -x; \
	  uv venv --quiet --seed --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[demo]'; \
	else set -x; \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'; \
	fi
	@touch $@

# On top of it: tools that test and check the code.
$(DEVELOPED): $(INSTALLED)
	@if command -v uv >/dev/null 2>&1; then set -x; \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else set -x; \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

# The TPU compiler is 200 MB and exists for x86-64 Linux only; elsewhere jobs start without a preflight and log that.
$(COMPILER): $(INSTALLED)
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then set -x; $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[preflight]'; fi
	@touch $@
