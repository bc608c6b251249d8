# `make demo` and `make test` work from a fresh clone; `make help` lists the rest.
#
# The constraints file holds the tested versions. For another build of torch (CUDA, ROCm, a newer release) copy it, edit the
# copy and name it once: `make demo CONSTRAINTS=mine.txt`; later calls keep to it. `CONSTRAINTS=` installs without any.

PYTHON ?= python3
VENV ?= .venv
TEST_JOBS ?= 2
DEPLOY_VENV ?= $(CURDIR)/apps/deploy/.venv
LABEL_VENV ?= $(CURDIR)/apps/label/.venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python -m
EXTRAS := dev,dicom,export

# the stamp records which constraints the environment was made with
RECORDED := $(shell cat "$(STAMP)" 2>/dev/null)
ifeq ($(origin CONSTRAINTS),undefined)
CONSTRAINTS := $(if $(wildcard $(STAMP)),$(RECORDED),constraints.txt)
else ifneq ($(CONSTRAINTS),$(RECORDED))
$(STAMP): again
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: again clean demo format help install lint test test-deploy test-label types

demo: $(STAMP)  ## generate a cohort, train both stages, evaluate and anonymise: everything lands in demo/
	$(RUN) monai_anon demo --output demo

test: $(STAMP)  ## run the tests (TEST_JOBS=2 at once; ARGS="tests/test_losses.py -k ssim" for some of them)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) pytest -n $(TEST_JOBS) --dist loadfile $(ARGS)

test-deploy: $(STAMP)  ## test the MONAI Deploy app in an environment of its own, apps/deploy/.venv (1.7 GB, minutes)
	@PYTHON=$(abspath $(VENV))/bin/python apps/deploy/make_environment.sh $(DEPLOY_VENV); ended=$$?; \
	if [ $$ended = 3 ]; then echo "skipped: the packages of apps/deploy/requirements.txt cannot be installed here"; \
	elif [ $$ended != 0 ]; then exit $$ended; \
	else DEPLOY_PYTHON=$(DEPLOY_VENV)/bin/python $(RUN) pytest -s tests/test_deploy_app.py $(ARGS); fi

test-label: $(STAMP)  ## test the MONAI Label app in an environment of its own, apps/label/.venv (3.4 GB, minutes)
	@PYTHON=$(abspath $(VENV))/bin/python apps/label/make_environment.sh $(LABEL_VENV); ended=$$?; \
	if [ $$ended = 3 ]; then echo "skipped: the packages of apps/label/requirements.txt cannot be installed here"; \
	elif [ $$ended != 0 ]; then exit $$ended; \
	else LABEL_PYTHON=$(LABEL_VENV)/bin/python $(RUN) pytest -s tests/test_label_app.py $(ARGS); fi

lint: $(STAMP)  ## check style and format
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(STAMP)  ## check types
	$(RUN) mypy

format: $(STAMP)  ## repair style and format where that can be done safely
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

install: $(STAMP)  ## make the environment only
	@echo "Ready: . $(VENV)/bin/activate"

clean:  ## remove the environment, caches and the demo's output
	rm -rf $(VENV) $(DEPLOY_VENV) $(LABEL_VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# The stamp is written last, so an interrupted installation is taken up again by the next call.
$(STAMP): setup.cfg pyproject.toml $(wildcard $(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python >= 3.10 is needed: make ... PYTHON=python3.11")'
	@rm -f $(STAMP)
	@$(RUN) pip --version >/dev/null 2>&1 || { echo "Making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV), a few minutes the first time ..."
	$(RUN) pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[$(EXTRAS)]'
	@echo '$(CONSTRAINTS)' > $(STAMP)
