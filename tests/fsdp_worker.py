"""What every rank runs under torchrun for FSDP2 on the CPU: torch's `fully_shard` on a gloo mesh. Not a test module.

    torchrun ... fsdp_worker.py CHECKPOINT OUT TUNING

accelerate shards on accelerators only, so this is a small loop of its own over the same gate, the same loss and the
same saving. Before each step comes an evaluation, which leaves the tail and the root gathered. Rank r of w takes batch
r, r + w, ... of each step; with one process nothing is sharded and it is the reference. Writes `OUT/weights.safetensors` (gathered), `OUT/export` (a checkpoint folder) and `OUT/report.json`.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import tiny_training
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.data.collator import PARTCollator
from modeling_part.recipes.stages import part_of
from modeling_part.training.freezing import LanguageModelGate, named_parameters
from modeling_part.training.lora import without_lora


TASKS = ("asr", "s2tt", "asr", "mt", "asr", "s2tt")
BATCHES_PER_STEP = 4


def shard(model):
    """Per-layer units, the embeddings and the tail, as accelerate makes them (`fsdp2_prepare_model`)."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layers = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1].isdigit() and "layers." in name]
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    tail = [model.model.language_model.norm, head]
    if embed.weight is head.weight:
        tail.insert(1, embed)
    else:
        fully_shard(embed, mesh=mesh)
    fully_shard(tail, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)


def local(tensor):
    """This rank's bits."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def main(checkpoint: str, out: Path, tuning: str):
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = PARTForSpeechSeq2Seq.from_pretrained(checkpoint)
    processor = PARTProcessor.from_pretrained(checkpoint)
    kl = {"kl": 0.5} if tuning == "lora" else {}  # which needs the language model as it was
    stage = tiny_training.joint_stage(losses={"nll": 1.0, "ctc": 0.5, **kl}, tuning=tuning)
    # Builds LoRA, freezes what the stage does not train, and is what saves in the end.
    trainer = tiny_training.make_trainer(out / "run", stage, model=model, processor=processor, max_rows=2)
    if world > 1:
        shard(model)
        sharded = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
        assert len(sharded) == len(list(model.parameters())), "FSDP2 wrapped everything"
    parameters = named_parameters(model)
    trained = {name: parameters[name] for names in trainer.trainable_names.values() for name in names}
    gate = LanguageModelGate(stage, model, trainer.trainable_names["language_model"])
    optimizer = torch.optim.AdamW(list(trained.values()), lr=1e-3, weight_decay=0.1, eps=1e-4, foreach=False)
    collator, dataset = PARTCollator(processor, with_transcripts=True), trainer.train_dataset
    rows = {task: [row for row in dataset if row["task"] == task] for task in set(TASKS)}
    report = []
    for task in TASKS:
        # Very unequal lengths over the ranks; every batch has at least one row.
        chosen = sorted(rows[task], key=lambda row: len(row["text"]))
        batches = [collator(chosen[i : i + 1 + i // 2]) for i in range(BATCHES_PER_STEP)]
        tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        before = {name: local(p) for name, p in trained.items()}
        states = {name: {k: local(v) for k, v in optimizer.state[p].items()} for name, p in trained.items()}
        with torch.no_grad():
            model.eval()
            model(**{key: value for key, value in batches[rank].items() if key != "batch_info"})
        gate.set_task(task)
        model.train()
        mine = batches[rank::world]
        for index, batch in enumerate(mine):
            inputs = {key: value for key, value in batch.items() if key != "batch_info"}
            if task == "mt" and kl:
                inputs |= {"kl_weight": 0.5, "at_start": partial(without_lora, model.model.language_model)}
            if world > 1:
                model.set_requires_gradient_sync(index == len(mine) - 1)
            # FSDP averages over the ranks; the loss is divided by the tokens of all of them.
            (model(**inputs, num_items_in_batch=tokens, ctc_weight=0.5).loss * world).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moved = {name for name, p in trained.items() if not torch.equal(local(p), before[name])}
        changed_states = {
            name
            for name, p in trained.items()
            for key, value in optimizer.state[p].items()
            if key not in states[name] or not torch.equal(local(value), states[name][key])
        }
        report.append(
            {
                "task": task,
                "weights": sorted({part_of(name) for name in moved}),
                "states": sorted({part_of(name) for name in changed_states}),
                "had_language_model_state": any(states[name] for name in trainer.trainable_names["language_model"]),
            }
        )
    full = model.state_dict()
    if world > 1:
        full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        save_file({name: tensor.clone().contiguous() for name, tensor in full.items()}, out / "weights.safetensors")
        trainer._save(str(out / "export"), state_dict=full)
    (out / f"report{rank}.json").write_text(json.dumps({"world_size": world, "steps": report}))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
