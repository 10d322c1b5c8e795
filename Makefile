# The commands of the project: `make help` lists them. Without make: see "Without make" in README.md.
SHELL := bash
.DEFAULT_GOAL := help

PY := .venv/bin/python
READY := .venv/.installed

.PHONY: help report test bench lint lab notebooks student badges clean

help:  ## list the commands
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -nE 's/^([a-z]+):.*## (.*)/make \1: \2/p' Makefile

report: $(READY)  ## fine-tune a model and write a report; ARGS="-p dataset imdb -p model smollm2"
	@$(PY) -m tutorkit.report $(ARGS)

# Every stage runs, so that one failure does not hide another.
test: $(READY)  ## ruff, pytest (with papermill on the report), strict nbval, lessons in a browser
	@failed=0; summary=""; all=$$SECONDS; \
	stage() { \
		local name="$$1" start=$$SECONDS result=passed; shift; \
		echo "== $$name"; "$$@" || { result=FAILED; failed=1; }; \
		summary+="$$name: $$result in $$((SECONDS - start)) s"$$'\n'; \
	}; \
	stage "ruff" $(PY) -m ruff check .; \
	stage "pytest" env OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile; \
	stage "nbval" $(PY) tests/lessons.py notebooks/*.ipynb; \
	found=0; chromium=$$($(PY) tests/e2e/chromium.py --install) || found=$$?; \
	if [ $$found = 3 ]; then \
		echo "== browser: not run ($$chromium)"; summary+="browser: not run ($$chromium)"$$'\n'; \
	else \
		stage "browser" $(PY) -m pytest tests/e2e; \
	fi; \
	echo "== make test: $$((SECONDS - all)) s"; printf '%s' "$$summary"; exit $$failed

bench: $(READY)  ## how fast this kit is here, beside the usual loops; ARGS="--rows 384", 20 minutes
	@$(PY) tests/bench/bench.py $(ARGS)

lint: $(READY)  ## ruff alone
	@$(PY) -m ruff check .

lab: $(READY)  ## open JupyterLab on the notebooks
	@# nbgrader's menus are for teachers: `.venv/bin/jupyter labextension enable @jupyter/nbgrader`.
	@config=.venv/etc/jupyter/labconfig/page_config.json; mkdir -p "$${config%/*}"; \
	[ -e "$$config" ] || echo '{"disabledExtensions": {"@jupyter/nbgrader": true}}' > "$$config"
	@# A lesson's kernel works in notebooks/, where a relative path would mean another folder.
	@if [ -n "$$TUTORKIT_DATA" ]; then TUTORKIT_DATA="$$(cd "$$TUTORKIT_DATA" && pwd)" || exit 1; fi; \
	$(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(ARGS)

notebooks: $(READY)  ## run the lessons, store outputs, write exercises; NAMES="05" for some
	@$(PY) -m tutorkit.notebooks build $(NAMES)
	@$(PY) -m tutorkit.exercises $(NAMES)

student: $(READY)  ## write the student's and the instructor's edition to classroom/
	@$(PY) -m tutorkit.editions classroom

badges: $(READY)  ## render badges and Colab cells from the address in pyproject.toml
	@$(PY) -m tutorkit.notebooks badges

clean:  ## remove the environment and caches; runs/ and downloaded models stay
	rm -rf .venv .pytest_cache .ruff_cache build *.egg-info
	find tutorkit tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# Built once, and again when a dependency changes. Of pip's progress the large downloads are shown.
$(READY): pyproject.toml constraints.txt
	@set -o pipefail; start=$$SECONDS; python=""; \
	for each in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
		if $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			python=$$each; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "Python 3.11 or newer is needed and none was found. Install one from your system's" \
			"packages or python.org, or name yours: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Setting up .venv with $$($$python --version), once: about 2 GB on disk with a CPU build" \
		"of PyTorch, some minutes."; \
	if [ ! -x $(PY) ] || ! $(PY) -m pip --version >/dev/null 2>&1; then \
		rm -rf .venv; \
		$$python -m venv .venv >/dev/null 2>&1 \
		|| { rm -rf .venv; $$python -m venv --without-pip .venv 2>/dev/null \
			&& $$python -m pip --python $(PY) install --quiet pip; } \
		|| { rm -rf .venv; echo "$$python cannot make a virtual environment. On Debian and Ubuntu:" \
			"sudo apt install python3-venv python3-pip" >&2; exit 1; }; \
	fi; \
	$(PY) -m pip install --constraint constraints.txt --editable ".[engines,test]" \
		| { grep --line-buffered -oE 'Downloading .*\(([0-9]{2,}(\.[0-9]+)? MB|[0-9.]+ GB)\)|^Installing collected packages' \
			|| true; } || exit 1; \
	touch $@; echo "Ready after $$((SECONDS - start)) s."
