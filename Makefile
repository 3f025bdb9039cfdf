# Two commands: `make demo` rebuilds every result of the default preset, `make test` runs the tests. `make` lists the rest.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PRESET ?= scenes
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
MINUTES ?= 8
# Further arguments of snakemake or pytest, such as ARGS=--dry-run
ARGS ?=

# A preset is a name or the path of a YAML file; its results are named by it.
NAME = $(notdir $(patsubst %.yml,%,$(PRESET:.yaml=)))
RESULTS = results/$(NAME)
PUBLISHED = results/published/$(NAME)
STORED ?= $(PUBLISHED)
# What people read, and how it came about; of measurements of speed all, beside those that were not made anew.
SMALL = metrics.csv items.parquet benchmarks.csv words.parquet tokens.parquet mutual.parquet training.parquet costs.csv \
	reference.json provenance.yaml fits.json claims.csv claims.md claims.html tables figures viewer.html
# Words and pictures of captions that are not ours stay where they are.
ifeq ($(NAME),photos)
SMALL := $(filter-out words.parquet viewer.html,$(SMALL))
endif
ifeq ($(NAME),bench)
SMALL = $(notdir $(wildcard results/bench/*))
KEPT = cp -R $(PUBLISHED)/. $(PUBLISHED).part/
endif

BIN := .venv/bin
# Written last: an installation that was cut off leaves none behind and is taken up again.
MAIN := .venv/.main
DEV := .venv/.dev
SCORER := .venv-vlmevalkit/ready
ACTIVATE := export PATH="$(CURDIR)/$(BIN):$$PATH";

.DELETE_ON_ERROR:
.PHONY: help demo run figures plan slice test check publish bench env clean

help: ## List what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: env ## Install, rebuild every result of PRESET (scenes), name what to open
	@$(MAKE) --no-print-directory run
	@printf '\nDone. Open the report and its figures:\n'
	@ls -1 $(RESULTS)/report.html $(RESULTS)/viewer.html $(RESULTS)/claims.md $(RESULTS)/figures/*.png | sed 's/^/  /'

# The lock is on standard input, which every job inherits: jobs that outlive a killed run keep it until they end, so that
# no second run writes beside them. Whoever holds it knows that a lock left by Snakemake is stale. Without flock (macOS)
# Snakemake's own lock is all there is.
run: env ## Run or resume PRESET (scenes) on CORES (all)
	@mkdir -p results
	@$(ACTIVATE) exec 0<>results/.lock; \
	if command -v flock >/dev/null; then \
	  flock --nonblock 0 || { echo "make run: another run, or a job that outlived one, still works in results/; wait for it or end it (fuser results/.lock names it)" >&2; exit 2; }; \
	  if [ -n "$$(ls -A .snakemake/locks 2>/dev/null)" ]; then snakemake --quiet all --unlock --config preset=$(PRESET) || exit $$?; fi; \
	fi; \
	exec snakemake --cores $(CORES) --rerun-incomplete --config preset=$(PRESET) $(ARGS)

# Of small files alone, by default those that were published: no corpus, no model, no VLMEvalKit.
figures: PRESET = study
figures: export PRIOR_PHOTOS ?= photographs
figures: $(MAIN) ## Make tables, figures, claims and report of PRESET (study) from STORED (what is published)
	@mkdir -p results
	@$(ACTIVATE) exec snakemake figures --cores $(CORES) --config preset=$(PRESET) stored=$(STORED) $(ARGS)

plan: $(MAIN) ## Say what PRESET (scenes) costs before it is run: ARGS="--out plan.md --assume utilisation=0.5"
	@$(ACTIVATE) python -m cluster.plan --preset $(PRESET) $(ARGS)

slice: ## Run or resume PRESET for MINUTES (8), then save; call again to go on
	@end=$$(($$(date +%s) + 60 * $(MINUTES))); PRIOR_DEADLINE=$$end $(MAKE) --no-print-directory run; code=$$?; \
	if [ $$code -ne 0 ] && [ $$(date +%s) -ge $$end ]; then echo "make slice: time is up, and what was under way is saved; call it again to go on" >&2; exit 75; fi; \
	exit $$code

test: env $(DEV) ## Run the tests
	@$(ACTIVATE) python -m pytest -q $(ARGS)

check: env $(DEV) ## Lint, formats and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/mypy

publish: ## Copy the small files of PRESET's results to results/published, to be committed
	@for file in $(SMALL); do test -e $(RESULTS)/$$file || { echo "make publish: there is no $(RESULTS)/$$file; first: make run PRESET=$(PRESET)" >&2; exit 2; }; done
	@rm -rf $(PUBLISHED).part && mkdir -p $(PUBLISHED).part
	@$(KEPT)
	@cd $(RESULTS) && cp -R $(SMALL) $(CURDIR)/$(PUBLISHED).part/
	@find $(PUBLISHED).part -name '.*' -type f -exec rm {} +
	@rm -rf $(PUBLISHED) && mv $(PUBLISHED).part $(PUBLISHED)
	@du -sh $(PUBLISHED)

bench: env ## Measure speed and memory against others' loops, on an idle machine: results/bench/bench.md
	@$(ACTIVATE) python -m eval.bench method $(ARGS)

env: $(MAIN) $(SCORER) ## Install what a run needs

clean: ## Remove environments and caches; results stay
	rm -rf .venv .venv-vlmevalkit .snakemake .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache prior_vlm.egg-info
	find prior eval cluster tests workflow -name __pycache__ -prune -exec rm -rf {} +

$(MAIN): envs/main.txt pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "make: Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(or $(PYTHON),false) --version 2>/dev/null || echo not there); name another with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r envs/main.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(DEV): $(MAIN) envs/dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r envs/dev.txt
	@touch $@

# Rebuilt only when its own inputs change; it borrows the main environment's packages by path.
$(SCORER): envs/main.txt envs/vlmevalkit.sh envs/vlmevalkit.txt | $(MAIN)
	bash envs/vlmevalkit.sh .venv .venv-vlmevalkit
