# Two commands: `make dev` runs the whole system, `make test` passes the tests. Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# Nothing is built from source but the project itself: a build would fetch its backend without a hash.
PIP_LOCKED := -m pip install --quiet --require-hashes --only-binary :all: --requirement
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(LOCK_FLAGS)

.PHONY: dev test drill drill-resumes drill-alerts check manifests lock settings sizing licences audit release clean

dev: $(INSTALLED)
	$(BIN)/pushgate dev

# Three workers, since the suite mostly waits; a file's tests stay together, and share its processes.
test: $(INSTALLED)
	$(BIN)/pytest --numprocesses 3 --dist loadfile

# Faults under load, for forty minutes; DRILL takes its options, as in: make drill DRILL="--rows 1 4".
drill: $(INSTALLED)
	$(BIN)/python -m loadtest.drill $(DRILL)

# Clients that come back, over whatever Hypothesis draws, for half an hour: make drill-resumes DRILL="--save".
drill-resumes: $(INSTALLED)
	$(BIN)/python -m loadtest.random_faults $(DRILL)

# Planted faults and their alerts, with a real Prometheus (Debian: prometheus), for half an hour.
drill-alerts: $(INSTALLED)
	$(BIN)/python -m loadtest.alerts $(DRILL)

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml requirements/all.txt
	@echo 'Installing what pushgate needs into .venv: some minutes, once.'
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_LOCKED) requirements/all.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# The chart is the source of deploy/kubernetes; needs helm (deploy/helm/README.md).
manifests:
	deploy/kubernetes/render.sh

# Pins stay as they are, but for what pyproject.toml has changed; LOCK_FLAGS=--upgrade takes the newest.
lock:
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet uv
	.venv/lock/bin/$(COMPILE) pyproject.toml --all-extras --group build --output-file requirements/all.txt
	.venv/lock/bin/$(COMPILE) pyproject.toml --output-file requirements/run.txt
	.venv/lock/bin/$(COMPILE) pyproject.toml --extra tracing --constraint requirements/all.txt --output-file requirements/tracing.txt
	.venv/lock/bin/$(COMPILE) --group pyproject.toml:build --constraint requirements/all.txt --output-file requirements/build.txt
	.venv/lock/bin/$(COMPILE) --group pyproject.toml:release --constraint requirements/all.txt --output-file requirements/release.txt

# docs/settings.md, from the settings classes.
settings: $(INSTALLED)
	$(BIN)/python -m pushgate.settings_page > docs/settings.md

# The tables of docs/sizing.md, from loadtest/results.
sizing: $(INSTALLED)
	$(BIN)/python -m loadtest.sizing --write

# requirements/licences.md, from the metadata of what is installed.
licences: $(INSTALLED)
	$(BIN)/python -m deploy.release.licences > requirements/licences.md

# Known weaknesses of the locked packages; status 3 where a registry gives no answer.
audit:
	$(PYTHON) -m venv .venv/release
	.venv/release/bin/python $(PIP_LOCKED) requirements/release.txt
	.venv/release/bin/python -m deploy.release.audit

# Wheel, client, chart and image of the last commit, with bills of materials, hashes and a signature.
release:
	deploy/release/build $(RELEASE_FOLDER)

clean:
	rm -rf .venv .pushgate
