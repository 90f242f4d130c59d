# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Within-language alignment made explicit: CTC in the language model's own embedding space.

Not the paper's. Its stages align speech with a frozen language model through the answer's likelihood alone, which lies
on a plateau until it falls, at a step that nobody knows. Here every audio token is scored against the language model's
token embeddings (never trained by it), and CTC (Graves et al. 2006) says which tokens of the transcript must be found in
which order. No language model runs, so that a step costs a fraction.

Prior art: CTC tied to a language model's input embeddings in wenet-e2e/wesr (`speech_llm.py`), LegoSLM (arXiv
2505.11352), CJST (arXiv 2411.07607), CTC drafts for speech language models (arXiv 2603.11243). Ours: the learned blank,
the scale, the bias by token frequency (which lets the whole vocabulary compete), and the order, CTC alone first.

Shapes are written with B clips, A audio tokens of a clip, N of all clips, U tokens of a transcript, H the language
model's width, V its vocabulary, K the tokens that occur in a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .configuration_part import PARTConfig
from .encoder_part import lengths_to_mask
from .layout_part import BatchLayout, clip_positions, put_positions, transcript_layout
from .outputs_part import PARTCausalLMOutputWithPast
from .prompts_part import task_of


# What an audio token scores that equals a token's embedding, whatever the language model.
MATCH_SCORE = 20.0
# Share of the probability of the bias that is spread evenly over the vocabulary, for tokens that were not counted.
EVEN_SHARE = 0.01
# Audio tokens whose scores over the vocabulary are computed at a time: 256 x 152k float32 are 0.2 GB.
CHUNK_SIZE = 256


class PARTAlignmentHead(nn.Module):
    """Scores of audio tokens against the language model's token embeddings and one learned blank.

    `score(e, token) = scale * e . E[token] + bias[token]` and `score(e, blank) = scale * e . blank`, a softmax over
    all of them. `bias` is the log-frequency of the token in the training transcripts, 0 for the most frequent one.
    """

    def __init__(self, config: PARTConfig) -> None:
        super().__init__()
        self.scale = config.alignment_scale
        self.blank = nn.Parameter(torch.zeros(config.text_config.hidden_size))
        self.register_buffer("token_bias", torch.zeros(config.text_config.vocab_size))

    @torch.no_grad()
    def set_token_frequencies(self, counts: torch.Tensor) -> None:
        """Set the bias from `(V,)` counts of the tokens in the training transcripts.

        A small share is spread evenly over the vocabulary, so that a token that was never counted can still be found.
        """
        counts = counts.to(self.token_bias.device, torch.float64)
        shares = (1 - EVEN_SHARE) * counts / counts.sum().clamp(min=1) + EVEN_SHARE / len(counts)
        self.token_bias.copy_((shares / shares.max()).log())

    def losses(
        self,
        audio_embeds: torch.Tensor,
        audio_lengths: torch.Tensor,
        transcript_ids: torch.Tensor,
        embeddings: torch.Tensor,
        layout: BatchLayout | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CTC of each clip.

        Args:
            audio_embeds: `(N, H)`, clip after clip.
            audio_lengths: `(B,)` audio tokens of each clip.
            transcript_ids: `(B, U)`, -100 where there is none; a row of -100 has no transcript.
            embeddings: `(V, H)` token embeddings, as the language model's layers see them.
            layout: of the batch with these transcripts, where it is known; None: the device is asked.

        Returns:
            `(B,)` nats, 0 where a clip is left out, and `(B,)` which are counted: clips with a transcript that fits,
            one audio token for each of its tokens and one more between two that are the same.
        """
        if layout is None:
            layout = transcript_layout(transcript_ids, audio_lengths)
            layout |= {"audio_lengths": audio_lengths.cpu().numpy(), "longest_clip": int(audio_lengths.max())}
        log_probs = self.log_probs(audio_embeds, layout["tokens"], embeddings)
        longest, is_counted = layout["longest_clip"], layout["is_counted"]
        padded = log_probs.new_zeros(len(audio_lengths), longest, log_probs.shape[-1])
        padded = put_positions(padded, clip_positions(audio_lengths, longest, len(log_probs)), log_probs)
        lengths = [torch.from_numpy(layout[name]) for name in ("audio_lengths", "transcript_lengths")]
        # Classes of this batch: 0 is the blank, then the tokens that occur.
        classes = layout["classes"] + 1
        nats = ctc_nats(padded, lengths_to_mask(audio_lengths, longest), classes, *lengths, is_counted)
        return nats, is_counted

    def log_probs(self, audio_embeds: torch.Tensor, tokens: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """`(N, H)` and `(K,)` -> `(N, 1 + K)`: of the blank and of these tokens, among the whole vocabulary.

        On the embeddings' device, wherever `device_map` has put the rest.
        """
        audio_embeds, tokens = audio_embeds.to(embeddings.device), tokens.to(embeddings.device)
        blank = self.blank_scores(audio_embeds)
        scaled = (self.scale * audio_embeds).to(embeddings.dtype)
        bias = self.token_bias.to(embeddings.device)
        total = torch.logaddexp(blank, VocabularyTotal.apply(scaled, embeddings, bias))
        # Once more for the few: picked from the whole vocabulary's, their gradient would fill a matrix of that size.
        wanted = self.token_scores(audio_embeds, embeddings[tokens], bias[tokens])
        return torch.cat([blank[:, None], wanted], -1) - total[:, None]

    def scores(self, audio_embeds: torch.Tensor, embeddings: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`(n, H)`, `(K, H)` and `(K,)` -> `(n, 1 + K)` in float32, the blank first."""
        of_tokens = self.token_scores(audio_embeds, embeddings, bias)
        return torch.cat([self.blank_scores(audio_embeds)[:, None], of_tokens], -1)

    def blank_scores(self, audio_embeds: torch.Tensor) -> torch.Tensor:
        """`(n, H)` -> `(n,)` in float32."""
        return self.scale * (audio_embeds.float() * self.blank.to(audio_embeds.device).float()).sum(-1)

    def token_scores(self, audio_embeds: torch.Tensor, embeddings: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`(n, H)`, `(K, H)` and `(K,)` -> `(n, K)` in float32."""
        return (self.scale * audio_embeds).to(embeddings.dtype) @ embeddings.T + bias.float()

    @torch.no_grad()
    def best_tokens(
        self, audio_embeds: torch.Tensor, embeddings: torch.Tensor, among: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(N, H)` -> `(N,)` the most probable token of each audio token, -1 for the blank.

        Args:
            audio_embeds: clip after clip.
            embeddings: `(V, H)`.
            among: `(K,)` tokens that may be chosen; all of them by default.
        """
        audio_embeds, bias = audio_embeds.to(embeddings.device), self.token_bias.to(embeddings.device)
        if among is not None:
            among = among.to(embeddings.device)
            embeddings, bias = embeddings[among], bias[among]
        best = [self.scores(chunk, embeddings, bias).argmax(-1) - 1 for chunk in audio_embeds.split(CHUNK_SIZE)]
        best = torch.cat(best)
        return best if among is None else torch.where(best < 0, best, among[best.clamp(min=0)])

    @torch.no_grad()
    def sureness(self, audio_embeds: torch.Tensor, embeddings: torch.Tensor) -> float:
        """Mean probability, among the known tokens and the blank, of the tokens that greedy CTC writes; 0 where it writes none."""
        bias = self.token_bias.to(embeddings.device)
        if (known := self.known_tokens()) is not None:
            embeddings, bias = embeddings[known.to(embeddings.device)], bias[known.to(bias.device)]
        best = [
            self.scores(chunk, embeddings, bias).softmax(-1).max(-1)
            for chunk in audio_embeds.to(embeddings.device).split(CHUNK_SIZE)
        ]
        written = torch.cat([values[places > 0] for values, places in best])
        return float(written.mean()) if len(written) else 0.0

    def known_tokens(self) -> torch.Tensor | None:
        """The tokens that occur in the training transcripts; None where they are no small part of the vocabulary."""
        known = (self.token_bias > self.token_bias.min()).nonzero().flatten()
        return known if 0 < len(known) < len(self.token_bias) / 2 else None


class VocabularyTotal(torch.autograd.Function):
    """Log-sum-exp of the scores of the whole vocabulary: `(N, H)`, `(V, H)` and `(V,)` -> `(N,)` in float32.

    Its gradient by an audio token is the mean of the embeddings under the softmax. That is `(N, H)` and computed on the
    way, chunk by chunk, so that nothing of the vocabulary's size outlives its chunk and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx, scaled: torch.Tensor, embeddings: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        totals, means = [], []
        for chunk in scaled.split(CHUNK_SIZE):
            scores = (chunk @ embeddings.T).float().add_(bias)
            highest = scores.amax(-1, keepdim=True)
            weights = scores.sub_(highest).exp_()
            weight = weights.sum(-1, keepdim=True)
            totals.append((highest + weight.log())[:, 0])
            if ctx.needs_input_grad[0]:
                means.append((weights.div_(weight).to(embeddings.dtype) @ embeddings).to(scaled.dtype))
        if means:
            ctx.save_for_backward(torch.cat(means))
        return torch.cat(totals)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (means,) = ctx.saved_tensors
        return (gradient[:, None] * means).to(means.dtype), None, None


def ctc_nats(
    log_probs: torch.Tensor,
    valid: torch.Tensor,
    targets: torch.Tensor,
    audio_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    is_counted: torch.Tensor,
) -> torch.Tensor:
    """CTC over log-probabilities of some of the classes, with the gradient that belongs to them.

    The value is `torch.nn.functional.ctc_loss`'s, the gradient is not: torch gives that of scores before a softmax over
    the classes it sees, `probability - visits`, where `visits` are how often the paths of the transcript are expected to be
    in a class at an audio token (Graves et al. 2006, equation 15). Here the softmax was over the whole vocabulary, of
    which the classes are a part. By its log-probabilities the gradient is `-visits`.

    Args:
        log_probs: `(B, A, 1 + K)`, the blank first.
        valid: `(B, A)`, true for a clip's own audio tokens.
        targets: `(B, U)` classes.
        audio_lengths, target_lengths: `(B,)` on the CPU, where torch wants to know them.
        is_counted: `(B,)`; the others give 0 and no gradient.

    Returns:
        `(B,)` nats.
    """
    steps = log_probs.detach().float().transpose(0, 1).requires_grad_()
    with torch.enable_grad():
        nats = nn.functional.ctc_loss(
            steps, targets, audio_lengths, target_lengths, reduction="none", zero_infinity=True
        )
        (torch_gradient,) = torch.autograd.grad(nats.sum(), steps)
    visits = (steps.detach().exp() - torch_gradient).transpose(0, 1)
    visits = torch.where((valid & is_counted[:, None])[..., None], visits, 0.0)
    carrier = -(visits * log_probs).sum((1, 2))  # has that gradient; its value is taken away again
    return torch.where(is_counted, nats.detach(), 0.0) + carrier - carrier.detach()


def collapse(best: list[int]) -> list[int]:
    """What greedy CTC writes: repeats once, then no blanks (-1).

    >>> collapse([-1, 5, 5, -1, 5, 7])
    [5, 5, 7]
    """
    return [token for token, before in zip(best, [-1, *best], strict=False) if token not in (-1, before)]


def ctc_text(tokenizer, best: list[int]) -> str:
    """The text of what greedy CTC writes, see [`collapse`].

    Tokens of byte-level vocabularies may be parts of a letter; those of which CTC has missed the rest are no text, and the
    sign that stands for them would cut the word in two.
    """
    return tokenizer.decode(collapse(best), skip_special_tokens=True).replace("\ufffd", "").strip()


def alignment_scale(embeddings: torch.Tensor) -> float:
    """The factor by which an audio token that equals a token's embedding scores `MATCH_SCORE`, for `(V, H)`."""
    return MATCH_SCORE / embeddings.float().pow(2).sum(-1).mean().item()


def best_path(log_probs: np.ndarray, targets: Sequence[int]) -> list[int]:
    """The most probable CTC path (Viterbi) of a transcript through the audio tokens of its clip.

    Args:
        log_probs: `(A, classes)`, the blank first.
        targets: class of each token of the transcript.

    Returns:
        Per audio token the position in `targets`, -1 for the blank.

    Raises:
        ValueError: the transcript does not fit: it needs an audio token each, and one more between two that are the same.
    """
    repeats = sum(one == other for one, other in pairwise(targets))
    if not targets or len(targets) + repeats > len(log_probs):
        raise ValueError(
            f"{len(targets)} tokens with {repeats} repeats do not fit into {len(log_probs)} audio tokens."
        )
    classes = [0] + [state for target in targets for state in (target, 0)]  # blanks around every token
    scores = np.full(len(classes), -np.inf)
    scores[:2] = log_probs[0, classes[:2]]
    came_from = np.zeros((len(log_probs), len(classes)), dtype=int)
    can_skip = np.array([at > 1 and one != 0 and one != classes[at - 2] for at, one in enumerate(classes)])
    for step in range(1, len(log_probs)):
        before = np.stack([scores, np.r_[-np.inf, scores[:-1]], np.r_[-np.inf, -np.inf, scores[:-2]]])
        before[2, ~can_skip] = -np.inf
        came_from[step] = before.argmax(0)
        scores = before.max(0) + log_probs[step, classes]
    state = len(classes) - 2 + int(scores[-1] > scores[-2])
    path = []
    for step in range(len(log_probs) - 1, -1, -1):
        path.append((state - 1) // 2 if state % 2 else -1)
        state -= int(came_from[step, state])
    return path[::-1]


@torch.no_grad()
def align_tokens(
    head: PARTAlignmentHead, audio_embeds: torch.Tensor, token_ids: Sequence[int], embeddings: torch.Tensor
) -> tuple[np.ndarray, list[int]]:
    """Forced alignment: where in its clip each token of a text was said.

    Args:
        head: of the model.
        audio_embeds: `(A, H)` of the clip.
        token_ids: U tokens of the text.
        embeddings: `(V, H)` token embeddings.

    Returns:
        `(A, 1 + U)` log-probabilities of the blank and of each token, among the whole vocabulary, and the path, see
        [`best_path`].

    Raises:
        ValueError: the text does not fit.
    """
    tokens = torch.tensor(token_ids, dtype=torch.long, device=audio_embeds.device)
    log_probs = head.log_probs(audio_embeds, tokens, embeddings).float().cpu().numpy()
    # Classes by kind of token, so that two that are the same are known to be.
    kinds = {token: 1 + index for index, token in reversed([*enumerate(token_ids)])}
    return log_probs, best_path(log_probs, [kinds[token] for token in token_ids])


class AlignedText(NamedTuple):
    """A text whose tokens the alignment head has found, or not, in the audio tokens of its window."""

    text: str
    offsets: list[tuple[int, int]]  # which characters each token is of
    log_probs: np.ndarray | None  # `(A, 1 + tokens)` of the blank and of each token
    path: list[int] | None  # see `best_path`


def align_text(model, processor, audio_embeds: torch.Tensor, text: str) -> AlignedText:
    """Forced alignment of what was said in a window; without path where it does not fit.

    That is a text with more tokens than the window has audio tokens, which cannot have been said there: a loop of the
    language model.

    Args:
        model: a `PARTForSpeechSeq2Seq` with an alignment head.
        processor: its [`PARTProcessor`].
        audio_embeds: `(A, H)` of the window.
        text: without space around it.
    """
    ids, offsets = processor.text_ids_and_offsets(text)
    if not ids:
        return AlignedText(text, [], None, None)
    try:
        with model.loaded_alignment_head() as (head, embeddings):
            found = align_tokens(head, audio_embeds, ids, embeddings)
    except ValueError:  # too long; said by those who need the path
        found = None, None
    return AlignedText(text, offsets, *found)


def heard_text(model, processor, audio_embeds: torch.Tensor) -> str:
    """What greedy CTC writes of a window: `(A, H)` -> text."""
    with model.loaded_alignment_head() as (head, embeddings):
        best = head.best_tokens(audio_embeds, embeddings)
    return ctc_text(processor.tokenizer, best.tolist())


def clip_embeds(model, inputs: Mapping) -> Sequence[torch.Tensor | None]:
    """`(A, H)` of the clip of each row of a batch, A 0 where it has none; None of each where no row has one.

    Args:
        model: a `PARTForSpeechSeq2Seq`.
        inputs: prompts with `mm_encoder_outputs`, as for `generate`; without where no row has a clip.
    """
    counts = (inputs["input_ids"] == model.config.audio_token_id).sum(-1).tolist()
    if not any(counts):
        return [None] * len(counts)
    return inputs["mm_encoder_outputs"]["audio"].pooler_output.split(counts)


def align_answers(model, processor, inputs: Mapping, texts: Sequence[str], tasks: Sequence[str]) -> list[AlignedText]:
    """[`align_text`] of a batch; without path where no transcript is to be found in audio by an alignment head.

    Args:
        model: a `PARTForSpeechSeq2Seq`.
        processor: its [`PARTProcessor`].
        inputs: prompts with `mm_encoder_outputs`, as for `generate`.
        texts: B answers, without space around them.
        tasks: of the rows.
    """
    return [
        align_text(model, processor, audio_embeds, text)
        if model.alignment_head is not None and task_of(task) == "asr"
        else AlignedText(text, processor.text_ids_and_offsets(text)[1], None, None)
        for audio_embeds, text, task in zip(clip_embeds(model, inputs), texts, tasks, strict=True)
    ]


class AlignmentMixin:
    """What [`PARTForSpeechSeq2Seq`] does with its alignment head."""

    @contextmanager
    def loaded_alignment_head(self) -> Iterator[tuple[PARTAlignmentHead | None, torch.Tensor]]:
        """The head (None: there is none) and the `(V, H)` embeddings it scores against, outside the model's forward.

        There, accelerate's hooks, which fetch what a `device_map` has put on CPU or disk, would not run by themselves.
        """
        modules = [one for one in (self.alignment_head, self.get_input_embeddings()) if one is not None]
        hooks = [(one._hf_hook, one) for one in modules if getattr(getattr(one, "_hf_hook", None), "offload", False)]
        for hook, module in hooks:
            hook.pre_forward(module)
        try:
            yield self.alignment_head, self.get_input_embeddings().weight
        finally:
            for hook, module in hooks:
                hook.post_forward(module, None)

    def _align(
        self,
        audio_embeds: torch.Tensor,
        input_ids: torch.Tensor,
        transcript_ids: torch.Tensor,
        layout: BatchLayout | None = None,
    ) -> dict[str, torch.Tensor]:
        """CTC of every clip, and what greedy CTC would write while evaluating."""
        if self.alignment_head is None:
            raise ValueError(
                "The model has no alignment head; call `add_alignment_head` first, or set `ctc_weight` to 0."
            )
        if transcript_ids is None:
            raise ValueError("`ctc_weight` needs `transcript_ids`, what is said in each clip, padded with -100.")
        lengths = (input_ids == self.config.audio_token_id).sum(-1)
        embed = self.get_input_embeddings()
        # FSDP2 may shard the embeddings as a unit of their own (accelerate's way), which this is outside the forward of.
        is_sharded = hasattr(embed, "unshard")
        if is_sharded:
            embed.unshard()
        embeddings = embed.weight.detach()
        losses, counted = self.alignment_head.losses(audio_embeds, lengths, transcript_ids, embeddings, layout)
        alignment = {"ctc_losses": losses, "ctc_counted": counted}
        if not self.training:
            alignment["ctc_tokens"] = self.alignment_head.best_tokens(audio_embeds, embeddings)
        if is_sharded:
            embed.reshard()  # the backward pass needs no view of them
        return alignment

    def _alignment_only(
        self, alignment: dict[str, torch.Tensor], labels: torch.Tensor, ctc_weight: float, num_items_in_batch
    ) -> PARTCausalLMOutputWithPast:
        """The output of a step in which the language model does not run."""
        if not alignment:
            raise ValueError(
                "There is nothing to learn from: `nll_weight` is 0, and `ctc_weight` or the audio is missing."
            )
        if labels is None and num_items_in_batch is None:
            raise ValueError(
                "The alignment's loss is divided by the answer's tokens: give `labels` or `num_items_in_batch`."
            )
        items = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return PARTCausalLMOutputWithPast(loss=ctc_weight * alignment["ctc_losses"].sum() / items, **alignment)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As of every model; the bias of new tokens is that of tokens which were never counted.

        Raises:
            ValueError: the placeholder of the audio would be cut off.
        """
        if new_num_tokens is not None and pad_to_multiple_of is None and new_num_tokens <= self.config.audio_token_id:
            raise ValueError(
                f"With {new_num_tokens} embeddings there would be none of the placeholder of the audio, token "
                f"{self.config.audio_token_id}, and a saved checkpoint could not be loaded: keep "
                f"{self.config.audio_token_id + 1} or more (`len(processor.tokenizer)`)."
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if (head := self.alignment_head) is not None:
            size, bias = embeddings.num_embeddings, head.token_bias
            more = max(0, size - len(bias))
            head.token_bias = nn.functional.pad(bias[:size], (0, more), value=float(bias.min()))
        return embeddings

    @torch.no_grad()
    def add_alignment_head(self, token_counts: torch.Tensor) -> None:
        """Give the model a new [`PARTAlignmentHead`], scaled to its language model's embeddings.

        The blank begins as a random embedding of their size: from zero, take-off is a matter of the seed.

        Args:
            token_counts: `(V,)`, how often each token occurs in the training transcripts.
        """
        embed = self.get_input_embeddings()
        factor = float(getattr(embed, "embed_scale", 1.0))  # Gemma 3 scales what it looks up
        self.config.alignment_scale = alignment_scale(embed.weight * factor) * factor
        head = PARTAlignmentHead(self.config).to(embed.weight.device, embed.weight.dtype)  # as it is when loaded
        head.blank.copy_(torch.randn(head.blank.shape) * embed.weight.float().pow(2).mean().sqrt().cpu())
        head.set_token_frequencies(token_counts)
        self.alignment_head = head


__all__ = [
    "AlignedText",
    "AlignmentMixin",
    "PARTAlignmentHead",
    "align_answers",
    "align_text",
    "align_tokens",
    "best_path",
    "clip_embeds",
    "ctc_text",
    "heard_text",
]
