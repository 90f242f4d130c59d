# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Drafts for greedy decoding: what the alignment head hears is what the language model will probably write.

Self-speculative decoding (arXiv 2603.11243; Leviathan et al. 2023): one forward pass of the language model over a draft
says which of its tokens greedy decoding would have written. transformers' assisted generation does that; the alignment
head stands where its assistant model would. So does its relaxed acceptance (`assistant_ensemble_weight`): it weighs the
language model's probabilities with those of the draft, which is certain of its tokens.
"""

from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.generation.candidate_generator import CandidateGenerator


# Tokens of the first proposal, and of one after the draft was wrong and has met the text again.
FIRST_SIZE, RETRY_SIZE = 16, 4
# So many tokens in a row are the draft's before one that was never right is believed again: one is too often chance.
RETRY_AFTER = 2


class Draft(NamedTuple):
    """The greedy CTC transcript of a clip, as `assistant_model` of `generate`."""

    tokens: list[int]
    config: PreTrainedConfig  # the model's own: its vocabulary is the draft's

    def candidate_generator(self, prompt_length: int, limit: int, relaxed: bool = False) -> "DraftCandidates":
        """What proposes its tokens, after a prompt, for sequences of up to `limit` tokens."""
        vocabulary = self.config.get_text_config().vocab_size if relaxed else None
        return DraftCandidates(self.tokens, prompt_length, limit, vocabulary)


class PlaceInDraft:
    """Where in a draft a text has come to that is written token by token.

    The place is where the beginning of the draft and what has been written need the fewest edits (Levenshtein), so that a
    token too many, missing or wrong shifts it and no more; of several, the one that ends alike, or nearest to the next.

    Args:
        draft: tokens.

    Attributes:
        place: how many tokens of the draft are written.
        agrees: whether the last written token is the draft's there.
    """

    def __init__(self, draft: list[int]) -> None:
        self.draft = np.array(draft, dtype=np.int64)
        self.places = np.arange(len(draft) + 1)
        self.distances = self.places  # edits between what is written and each beginning of the draft
        self.place, self.agrees = 0, False

    def follow(self, token: int) -> None:
        """Find the place after one more written token."""
        alike = self.draft == token
        expected = self.place + 1
        # Written after the same beginning of the draft, or instead of its next token.
        edits = np.minimum(self.distances[1:] + 1, self.distances[:-1] + ~alike)
        edits = np.concatenate([self.distances[:1] + 1, edits])
        # A token of the draft that is left out costs one: the running minimum of distance minus place.
        self.distances = np.minimum.accumulate(edits - self.places) + self.places
        best = np.flatnonzero(self.distances == self.distances.min()).tolist()
        ends_alike = [place for place in best if place and alike[place - 1]]
        self.place = min(ends_alike or best, key=lambda place: abs(place - expected))
        self.agrees = bool(ends_alike)


class DraftCandidates(CandidateGenerator):
    """Proposes the tokens of a draft that follow what has been written, see [`PlaceInDraft`].

    Where the last written token is not the draft's, the next proposal is as long as what was right of the one before;
    after one that was all wrong there is none, which is ordinary decoding, until text and draft agree again: on two
    tokens if none of the draft was right so far.

    Args:
        draft: tokens.
        prompt_length: of the prompt before the text.
        limit: no sequence may become longer.
        vocabulary: for relaxed acceptance: how many tokens the language model scores.
    """

    def __init__(self, draft: list[int], prompt_length: int, limit: int, vocabulary: int | None = None) -> None:
        self.reached, self.limit, self.seen = PlaceInDraft(draft), limit, prompt_length
        self.vocabulary = vocabulary
        self.size, self.proposed = FIRST_SIZE, 0
        self.alike = 0  # how many of the last written tokens are the draft's
        self.was_right = False

    def get_candidates(
        self, input_ids: torch.LongTensor, **kwargs
    ) -> tuple[torch.LongTensor, torch.FloatTensor | None]:
        """`(1, L)` written so far -> `(1, L + proposed)`, and with a vocabulary log-probabilities of the proposed tokens."""
        for token in input_ids[0, self.seen :].tolist():
            self.reached.follow(token)
            self.alike = self.alike + 1 if self.reached.agrees else 0
            if self.alike >= (1 if self.was_right else RETRY_AFTER) and not self.size:
                self.size = RETRY_SIZE
        self.seen = input_ids.shape[1]
        room = max(0, self.limit - self.seen - 1)  # the model adds one of its own
        proposal = self.reached.draft[self.reached.place :][: min(self.size, room)]
        self.proposed = len(proposal)
        tokens = torch.from_numpy(proposal[None]).to(input_ids.device)
        sure = None
        if self.vocabulary is not None:
            sure = torch.full((1, self.proposed, self.vocabulary), float("-inf"), device=input_ids.device)
            sure.scatter_(2, tokens[..., None], 0.0)
        return torch.cat([input_ids, tokens], -1), sure

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.Tensor, num_matches: int) -> None:
        """Longer proposals after one that was right, shorter ones after one that was not."""
        self.was_right |= num_matches > 0
        if self.proposed:
            is_right = num_matches == self.proposed
            self.size = 2 * self.proposed if is_right else min(self.size, 2 * num_matches)


__all__ = ["Draft", "DraftCandidates", "PlaceInDraft"]
