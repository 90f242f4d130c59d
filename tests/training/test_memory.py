"""The memory estimate of `--dry_run`: on every architecture, and what must lower or raise it."""

import architectures
import pytest

from modeling_part.training.freezing import parameters_per_part
from modeling_part.training.memory import estimate_memory


SHAPES = {"frames": 1000, "positions": 800, "targets": 100}
EVERY = [{"text": text} for text in architectures.TEXT_CONFIGS] + [
    {"audio": audio} for audio in architectures.ENCODERS
]


def estimate(model, shapes=SHAPES, **options):
    return estimate_memory(model, parameters_per_part(model), shapes, **options)


@pytest.mark.parametrize("parts", EVERY, ids=lambda parts: next(iter(parts.values())))
def test_every_architecture_has_an_estimate(parts):
    model = architectures.build(**parts)
    figures = estimate(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert figures["weights"] * 2**30 == 4 * parameters
    assert figures["optimizer"] * 2**30 == 8 * parameters
    assert figures["total"] == pytest.approx(sum(size for name, size in figures.items() if name != "total"))
    checkpointed = estimate(model, gradient_checkpointing=True)
    assert 0 < checkpointed["activations"] < figures["activations"]


def test_what_is_shared_out_and_what_is_not():
    model = architectures.build()
    alone, replicated, sharded = (
        estimate(model, world_size=size, sharded=shards) for size, shards in ((1, False), (4, False), (4, True))
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert alone["gradients"] * 2**30 == 4 * parameters
    assert replicated["gradients"] == 2 * alone["gradients"]  # DDP's buckets hold a second copy
    for name in ("weights", "gradients", "optimizer"):
        assert sharded[name] == pytest.approx(alone[name] / 4)
        assert replicated[name] == alone[name] or name == "gradients"
    assert estimate(model, autocast=True)["weights"] * 2**30 == (4 + 2) * parameters  # and a copy in half precision
    assert sharded["activations"] == replicated["activations"] == alone["activations"]
    more = estimate(model, {**SHAPES, "targets": 200})
    assert more["logits"] == pytest.approx(2 * alone["logits"])
