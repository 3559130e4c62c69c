# make demo            chat with a small model (PROMPT="..." answers once)
# make test            the gate and all tests
# make native          rebuild the extension in place, for quick work with PYTHONPATH=src
# make sanitize        the native tests under the address and undefined-behaviour sanitizers
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: native
native:
	cmake -S . -B build/native -G "Unix Makefiles" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(BIN)/python) > /dev/null
	cmake --build build/native -j
	cp build/native/_native*.so src/baichuan2_tpu/
