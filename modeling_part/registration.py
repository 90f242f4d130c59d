# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How transformers comes to know PART: by name, as it knows its own models, whose files it loads when it meets one.

`AutoModel.register` and its kin take classes, and loading ours would cost every `part --help` the import of torch and
transformers. Instead the names go into the tables that transformers keeps for its own models, by three hooks:

1. When: the modules with the tables may be loaded before this package or after it. `_AfterLoading` sees each of them being
   loaded, and runs what `ACTIONS` says.
2. Where from: transformers imports a class by its name from `transformers.models.<model type>`. Under that name it finds
   this package, which gives a class when it is asked for one (`__init__`).
3. Pipelines: their table holds classes, no names. `_PipelineTask` loads the class when it is taken out.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


MODEL_TYPE = "part"
CONFIG = "PARTConfig"
MODELS = {
    "MODEL_MAPPING": "PARTModel",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING": "PARTForSpeechSeq2Seq",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING": "PARTForSpeechSeq2Seq",
}
# transformers takes its pipeline for speech by the model's class name, and would take PART for a CTC model.
PIPELINES = {"speech-to-text": "PARTPipeline", "automatic-speech-recognition": "SpeechRecognitionPipeline"}


def register() -> None:
    """Enter PART's names into the tables of transformers, now or when they are loaded."""
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = sys.modules[__package__]
    for name, action in ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
    if not any(isinstance(finder, _AfterLoading) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterLoading())


class _AfterLoading:
    """A finder of modules (in `sys.meta_path`) that runs the action of one right after it has been loaded."""

    @staticmethod
    def find_spec(name: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Where Python finds a module that has an action; None for all others, which are left to the other finders."""
        action = ACTIONS.get(name)
        spec = None if action is None else PathFinder.find_spec(name, path, target)
        if spec is None:
            return None
        load = spec.loader.exec_module

        def load_and_act(module: ModuleType) -> None:
            load(module)
            action(module)

        spec.loader.exec_module = load_and_act
        return spec


def _register_config(auto: ModuleType) -> None:
    auto.CONFIG_MAPPING._mapping[MODEL_TYPE] = CONFIG


def _register_models(auto: ModuleType) -> None:
    for table, name in MODELS.items():
        _register_class(getattr(auto, table), name)


def _register_processor(auto: ModuleType) -> None:
    _register_class(auto.PROCESSOR_MAPPING, "PARTProcessor")


def _register_class(table, name: str) -> None:
    """Enter a class by its name; there is no public way that does not take the class."""
    table._model_mapping[MODEL_TYPE] = name
    table._reverse_config_mapping[CONFIG] = MODEL_TYPE


class _PipelineTask(dict):
    """What transformers keeps of a pipeline's task; its "impl", the class, is loaded when a pipeline is made."""

    def __init__(self, task: str, known: dict) -> None:
        super().__init__({key: value for key, value in known.items() if key != "impl"})
        self.task = task

    def __missing__(self, key: str) -> type:
        if key != "impl":
            raise KeyError(key)
        self["impl"] = getattr(import_module(".pipeline_part", __package__), PIPELINES[self.task])
        return self["impl"]


def _register_pipelines(pipelines: ModuleType) -> None:
    tasks = pipelines.PIPELINE_REGISTRY.supported_tasks
    for task in PIPELINES:
        known = tasks.get(task) or {"pt": (pipelines.AutoModelForSpeechSeq2Seq,)}
        tasks[task] = _PipelineTask(task, known)


def _name_in_saved_pipelines(pipeline_part: ModuleType) -> None:
    """A saved pipeline says by which task it was made, as `PIPELINE_REGISTRY.register_pipeline` would have it."""
    tasks = sys.modules["transformers.pipelines"].PIPELINE_REGISTRY.supported_tasks
    pipeline_part.PARTPipeline._registered_impl = {
        "speech-to-text": {"impl": pipeline_part.PARTPipeline, "pt": tasks["speech-to-text"]["pt"]}
    }


# What is done with a module when it has been loaded.
ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.pipelines": _register_pipelines,
    f"{__package__}.pipeline_part": _name_in_saved_pipelines,
}
