"""What every rank runs under torchrun: train_part.py with a probe. Not a test module.

    torchrun ... distributed_worker.py PROBE_FOLDER RECIPE.yaml [--overrides]

Each rank appends a line of JSON per optimizer step to `PROBE_FOLDER/rank<N>.jsonl`. `WITHOUT_SEARCH=1` in the
environment switches DDP's search for unused parameters off behind the trainer's back; `KILL_AFTER=N` ends the process
after step N with SIGKILL, `TERMINATE_AFTER=N` sends SIGTERM to the last rank alone.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

import train_part
from modeling_part.training.trainer import PARTTrainer


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """A fingerprint of the exact bits."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


class Probe(TrainerCallback):
    """Fingerprints of weights and optimizer state after every step."""

    def __init__(self, trainer: PARTTrainer, path: Path):
        self.trainer, self.path = trainer, path
        self.ids: list[str] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._write("begin")

    def on_step_end(self, args, state, control, **kwargs):
        self._write("step", ids=self.ids)
        self.ids = []
        if state.global_step == int(os.environ.get("KILL_AFTER", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)
        if (
            state.global_step == int(os.environ.get("TERMINATE_AFTER", "-1"))
            and args.process_index == args.world_size - 1
        ):
            os.kill(os.getpid(), signal.SIGTERM)

    def _write(self, event: str, **extra):
        trainer = self.trainer
        names = {parameter: name for name, parameter in trainer.model.named_parameters()}
        weights = {name: parameter for parameter, name in names.items()}
        states = {
            f"{names[parameter]}/{key}": value
            for parameter, values in trainer.optimizer.state.items()
            for key, value in values.items()
        }
        gated = set(trainer.trainable_names.get("language_model", []))
        line = {
            "event": event,
            "stage": trainer.stage.name,
            "step": trainer.state.global_step,
            "world_size": trainer.args.world_size,
            "wrapper": type(trainer.model_wrapped).__name__,
            "searches": getattr(trainer.model_wrapped, "find_unused_parameters", None),
            "task": getattr(self, "task", None),
            "weights": digest(weights),
            "gated_weights": digest({name: weights[name] for name in gated if name in weights}),
            "other_weights": digest({name: value for name, value in weights.items() if name not in gated}),
            "gated_states": digest({name: value for name, value in states.items() if name.split("/")[0] in gated}),
            **extra,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class ProbedTrainer(PARTTrainer):
    """Says what it trains on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        rank = self.args.process_index
        self.probe = Probe(self, Path(sys.argv[1]) / f"rank{rank}.jsonl")
        self.add_callback(self.probe)
        if os.environ.get("WITHOUT_SEARCH"):
            self.accelerator.ddp_handler.find_unused_parameters = False

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.probe.task = inputs["batch_info"]["task"]
        self.probe.ids += inputs["batch_info"]["ids"]
        return super().training_step(model, inputs, num_items_in_batch)


if __name__ == "__main__":
    train_part.PARTTrainer = ProbedTrainer
    train_part.launch(sys.argv[2:])
