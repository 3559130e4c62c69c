# make demo            chat with a small model (PROMPT="..." answers once)
# make test            the gate and all tests
# make lint            the gate alone
# make docs            the documentation site, into build/site
# make sanitize        the native tests under the address and undefined-behaviour sanitizers
# make native          rebuild the extension in place, for quick work with PYTHONPATH=src
# make clean           remove what these targets made, but not the user's cache
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

SOURCES := pyproject.toml CMakeLists.txt README.md LICENSE \
  $(shell find src -type f ! -name '*.so' ! -name '*.pyc')

# The text goes to the command through the environment: neither make nor the shell may interpret it.
override PROMPT := $(value PROMPT)
export PROMPT

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: demo test lint docs sanitize native clean

demo: $(VENV)/.package
	@if [ -n "$$PROMPT" ]; then \
	  exec $(BIN)/baichuan2 generate demo --temperature 0 -- "$$PROMPT"; \
	else \
	  exec $(BIN)/baichuan2 chat demo --max-tokens 256; \
	fi

test: lint
	scripts/test

lint: $(VENV)/.dev $(VENV)/.package
	scripts/check

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

sanitize: $(VENV)/.dev $(VENV)/.package
	scripts/sanitize

native: $(VENV)/.dev
	$(BIN)/cmake -S . -B build/native -G "Unix Makefiles" -DCMAKE_BUILD_TYPE=Release \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python) > /dev/null
	$(BIN)/cmake --build build/native -j
	install -m 755 build/native/_native*.so src/baichuan2_tpu/

clean:
	rm -rf $(VENV) build dist

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'error: $(PYTHON) is older than Python 3.10; name another: make PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Development tools are pinned with hashes; the package itself is tested as a user would install it. The lock is
# complete, so nothing is resolved: older pips cannot tell that typepy[datetime] is the typepy they were given.
$(VENV)/.dev: requirements-dev.lock | $(VENV)/.created
	$(PIP) install --quiet --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.package: $(SOURCES) | $(VENV)/.created
	$(PIP) install --quiet .
	@touch $@
