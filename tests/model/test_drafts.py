"""Greedy decoding with drafts of the alignment head: token for token the text without, in fewer steps."""

import numpy as np
import pytest
import tiny_training
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList, SynthIDTextWatermarkingConfig, TextStreamer

from modeling_part import PARTPipeline
from modeling_part.drafts_part import FIRST_SIZE, DraftCandidates
from modeling_part.generation_part import SURE_OF_TOKENS


RATE = 16_000


# ---- the candidates, against a language model that writes a given text ----


def passes(text: list[int], draft: list[int], limit: int | None = None) -> int:
    """Forward passes until a text is written, as transformers' assisted generation makes them."""
    prompt = [90, 91, 92]
    limit = len(prompt) + len(text) if limit is None else limit
    candidates = DraftCandidates(draft, len(prompt), limit)
    written, count = torch.tensor([prompt]), 0
    while written.shape[1] < len(prompt) + len(text):
        proposed = candidates.get_candidates(written)[0]
        assert torch.equal(proposed[:, : written.shape[1]], written)
        assert proposed.shape[1] < max(limit, written.shape[1] + 1)  # one more is the language model's own
        guess = proposed[0, written.shape[1] :].tolist()
        rest = text[written.shape[1] - len(prompt) :]
        right = next(
            (at for at, (one, other) in enumerate(zip(guess, rest, strict=False)) if one != other), len(guess)
        )
        accepted = rest[: right + 1]
        written = torch.cat([written, torch.tensor([accepted])], -1)
        candidates.update_candidate_strategy(written, None, len(accepted) - 1)
        count += 1
    return count


TEXT = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@given(TEXT, st.lists(st.integers(0, 9), max_size=30))
def test_any_draft_ends_and_never_takes_more_passes_than_none(text, draft):
    assert passes(text, draft) <= len(text) == passes(text, [])


@given(TEXT)
def test_a_right_draft_takes_one_pass_for_the_first_proposal_and_few_more(text):
    count = passes(text, text)
    assert count == 1 if len(text) <= FIRST_SIZE + 1 else count == 2


@pytest.mark.parametrize("kind", ["one wrong", "one too many", "one missing", "two wrong", "other pieces"])
def test_behind_a_correction_the_rest_of_the_draft_is_used(kind):
    text = list(range(16))
    draft = {
        "one wrong": [*text[:5], 77, *text[6:]],
        "one too many": [*text[:5], 77, *text[5:]],
        "one missing": [*text[:5], *text[6:]],
        "two wrong": [*text[:5], 77, 78, *text[7:]],
        "other pieces": [*text[:5], 77, 78, 79, *text[6:]],
    }[kind]
    assert passes(text, draft) <= (2 if kind == "one wrong" else 5)


def test_a_useless_draft_is_given_up():
    text, draft = list(range(30)), [50] * 30
    candidates = DraftCandidates(draft, 0, 100)
    proposed = []
    for length in range(len(text)):
        proposed.append(
            candidates.get_candidates(torch.tensor([text[:length]], dtype=torch.long))[0].shape[1] - length
        )
        candidates.update_candidate_strategy(None, None, 0)
    assert proposed == [FIRST_SIZE] + [0] * 29


def test_a_draft_that_was_never_right_is_believed_after_two_tokens_in_a_row():
    """One token that both have is too often chance: a proposal each time would make a useless draft slower than none."""
    draft = [50, 1, 60, 61, 62, 2, 3, 4, 5, 6, 7]
    text = [9, 1, 20, 21, 22, 2, 3, 4, 5, 6, 7]
    candidates = DraftCandidates(draft, 0, 100)
    proposed = []
    for length in range(len(text)):
        ids = candidates.get_candidates(torch.tensor([text[:length]], dtype=torch.long))[0][0, length:].tolist()
        proposed.append(ids)
        candidates.update_candidate_strategy(None, None, 0)
    assert proposed[1:7] == [[]] * 6 and proposed[7] == [4, 5, 6, 7]


# ---- in the model ----


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def model_and_processor(request):
    return tiny_training.aligned_model(request.param, adapter_conv_stride=4)


@pytest.fixture(scope="module")
def clips():
    return [
        0.1 * np.random.default_rng(seed).standard_normal(RATE * (1 + seed)).astype(np.float32) for seed in range(3)
    ]


DRAFTS = {
    "right": lambda text: text,
    "wrong": lambda text: [7] * len(text),
    "beginning": lambda text: text[: len(text) // 2],
    "one wrong": lambda text: [*text[:4], 7, *text[5:]],
    "one missing": lambda text: [*text[:4], *text[5:]],
    "too long": lambda text: text * 2,
    "empty": lambda text: [],
}


def write_draft(monkeypatch, model, tokens: list[int]) -> None:
    """Let the alignment head hear these tokens, with a blank between any two."""
    path = [one for token in tokens for one in (token, -1)] or [-1]
    monkeypatch.setattr(model.alignment_head, "best_tokens", lambda *_: torch.tensor(path))


def counted(module, function, **options):
    """What a function gives, and how often it ran a module."""
    runs = []
    hook = module.register_forward_hook(lambda *_: runs.append(1))
    try:
        result = function(**options)
        return result, len(runs)
    finally:
        hook.remove()


OPTIONS = {
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "minimum": {"min_new_tokens": 12},
    "many ends": {"eos_token_id": list(range(20, 120))},
}


@pytest.mark.parametrize(
    "kind, options",
    [(kind, {}) for kind in DRAFTS] + [(kind, one) for kind in ("right", "one wrong") for one in OPTIONS.values()],
    ids=str,
)
def test_tokens_are_those_of_greedy_decoding(model_and_processor, clips, monkeypatch, kind, options):
    model, processor = model_and_processor
    for clip in clips:
        inputs = processor(clip)
        settings = {**inputs, "max_new_tokens": 14, "output_logits": True, "return_dict_in_generate": True, **options}
        expected = model.generate(**settings)
        text = expected.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        write_draft(monkeypatch, model, DRAFTS[kind](text))
        given, steps = counted(model.model.language_model, model.generate, **settings, ctc_draft=True)
        assert torch.equal(given.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(given.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
        assert steps <= len(text)
        if kind == "right":
            assert steps == 1


def test_the_head_s_own_draft_changes_nothing_and_the_encoder_runs_once(model_and_processor, clips):
    model, processor = model_and_processor
    for clip in clips:
        inputs = processor(clip, source_lang="en")
        expected = model.generate(**inputs, max_new_tokens=20)
        given, encoded = counted(model.model.audio_tower, model.generate, **inputs, max_new_tokens=20, ctc_draft=True)
        assert torch.equal(given, expected) and encoded == 1


def test_relaxed_acceptance_takes_what_is_probable_enough(model_and_processor, clips, monkeypatch):
    model, processor = model_and_processor
    inputs = processor(clips[0])
    length = inputs["input_ids"].shape[1]
    greedy = model.generate(**inputs, max_new_tokens=12, output_logits=True, return_dict_in_generate=True)
    text = greedy.sequences[0, length:].tolist()
    likely, other = greedy.logits[3][0].softmax(-1).topk(2).values.tolist()
    draft = [*text[:3], greedy.logits[3][0].topk(2).indices[1].item()]
    write_draft(monkeypatch, model, draft)
    margin = likely - other
    settings = {**inputs, "max_new_tokens": 12, "ctc_draft": True}
    exact = model.generate(**settings, assistant_ensemble_weight=1 / (1 + 0.9 * margin))
    assert exact[0, length:].tolist() == text
    relaxed = model.generate(**settings, assistant_ensemble_weight=1 / (1 + 1.1 * margin))[0, length:].tolist()
    assert relaxed[:4] == draft
    # What is behind the accepted token is the language model's own continuation of it.
    so_far = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([draft])], -1)}
    so_far["attention_mask"] = torch.ones_like(so_far["input_ids"])
    assert relaxed[4:] == model.generate(**so_far, max_new_tokens=8)[0, length + 4 :].tolist()
    pipe = PARTPipeline(model=model, processor=processor, max_new_tokens=12, device="cpu")
    weight = {"assistant_ensemble_weight": 1 / (1 + 1.1 * margin)}
    expected = processor.batch_decode([relaxed], skip_special_tokens=True)[0].strip()
    assert pipe(clips[0], ctc_draft=True, generate_kwargs=weight)["text"] == expected


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"do_sample": True},
        {"prefill_chunk_size": 8},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5},
        {"max_time": 100.0},
        {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3])},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_other_ways_of_decoding_stay_as_they_are(model_and_processor, clips, monkeypatch, options):
    model, processor = model_and_processor
    monkeypatch.setattr(model.alignment_head, "best_tokens", lambda *_: pytest.fail("a draft was made"))
    inputs = processor(clips[0])
    torch.manual_seed(0)
    expected = model.generate(**inputs, max_new_tokens=6, **options)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, ctc_draft=True, **options), expected)


@pytest.mark.parametrize("states", ["hidden_states", "attentions"])
def test_states_of_each_step_are_those_without_a_draft(model_and_processor, clips, monkeypatch, states):
    model, processor = model_and_processor
    inputs = processor(clips[0])
    settings = {**inputs, "max_new_tokens": 6, "return_dict_in_generate": True, f"output_{states}": True}
    settings |= {"eos_token_id": None}
    expected = model.generate(**settings)
    write_draft(monkeypatch, model, expected.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    given = model.generate(**settings, ctc_draft=True)
    assert torch.equal(given.sequences, expected.sequences)
    torch.testing.assert_close(given[states], expected[states])


def test_what_differs_by_row_does_so_beside_drafts(model_and_processor, clips):
    class OneTokenOfTheRow(LogitsProcessor):
        def __call__(self, input_ids, scores):
            allowed = torch.arange(len(scores))[:, None] + 10
            return torch.full_like(scores, -torch.inf).scatter(1, allowed, 0.0)

    model, processor = model_and_processor
    inputs = processor(clips)
    for options in (
        {"prefix_allowed_tokens_fn": lambda row, ids: [10 + row]},
        {"logits_processor": LogitsProcessorList([OneTokenOfTheRow()])},
    ):
        given = model.generate(**inputs, max_new_tokens=3, ctc_draft=True, **options)
        assert given[:, -3:].tolist() == [[10 + row] * 3 for row in range(3)]


def test_a_batch_has_the_tokens_of_greedy_decoding_row_by_row(model_and_processor, clips, monkeypatch):
    model, processor = model_and_processor
    inputs = processor(clips, source_lang=["en", None, "fr"])
    for options in (
        {"max_new_tokens": 12},
        {"max_length": inputs["input_ids"].shape[1] + 9},
        {"eos_token_id": [30, 60]},
    ):
        options = {"max_new_tokens": 12, **options} if "max_length" not in options else options
        expected = model.generate(**inputs, **options)
        given, encoded = counted(model.model.audio_tower, model.generate, **inputs, **options, ctc_draft=True)
        assert torch.equal(given, expected) and encoded == 1
    texts = model.generate(**inputs, max_new_tokens=12)[:, inputs["input_ids"].shape[1] :].tolist()
    drafts = iter(texts)
    monkeypatch.setattr(
        model.alignment_head, "best_tokens", lambda *_: torch.tensor([one for t in next(drafts) for one in (t, -1)])
    )
    given, steps = counted(model.model.language_model, model.generate, **inputs, max_new_tokens=12, ctc_draft=True)
    assert given[:, inputs["input_ids"].shape[1] :].tolist() == texts and steps == 3  # one pass a row


def test_many_rows_are_taken_apart_where_the_head_is_sure(model_and_processor, clips, monkeypatch):
    """A step over four rows costs little more than over one: drafts that are half right would make it slower."""
    model, processor = model_and_processor
    inputs = processor([clips[0], clips[1], clips[0], clips[1]])
    options = {**inputs, "max_new_tokens": 6, "eos_token_id": None}
    run = model.model.language_model, model.generate
    expected, steps = counted(*run, **options)
    head, embeddings = model.alignment_head, model.get_input_embeddings().weight
    audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    scores = head.scores(audio, embeddings, head.token_bias).softmax(-1)
    written = scores[scores.argmax(-1) > 0].max(-1).values
    assert (
        head.sureness(audio, embeddings) == pytest.approx(float(written.mean()))
        and float(written.mean()) < SURE_OF_TOKENS
    )
    given, unsure_steps = counted(*run, **options, ctc_draft=True)
    assert torch.equal(given, expected) and unsure_steps == steps
    assert counted(model.model.audio_tower, model.generate, **options, ctc_draft=True)[1] == 1
    monkeypatch.setattr(head, "sureness", lambda *_: SURE_OF_TOKENS)
    given, sure_steps = counted(*run, **options, ctc_draft=True)
    assert torch.equal(given, expected) and sure_steps > steps  # row by row, with drafts that are of no use
    monkeypatch.setattr(head, "sureness", lambda *_: pytest.fail("a few rows are taken apart in any case"))
    model.generate(**processor(clips), max_new_tokens=2, ctc_draft=True)


def test_texts_models_without_a_head_and_rich_outputs_are_decoded_as_without(model_and_processor, clips, monkeypatch):
    model, processor = model_and_processor
    with monkeypatch.context() as patch:
        patch.setattr(model.alignment_head, "best_tokens", lambda *_: pytest.fail("a draft was made"))
        inputs = processor(task="mt", source_text=["Bonjour", "Oui"], source_lang="fr", target_lang="en")
        expected = model.generate(**inputs, max_new_tokens=6)
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, ctc_draft=True), expected)
        inputs = processor(clips)
        rich = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 6}
        expected = model.generate(**inputs, **rich)
        given = model.generate(**inputs, **rich, ctc_draft=True)
        assert torch.equal(given.sequences, expected.sequences) and len(given.scores) == len(expected.scores)
    model, processor = tiny_training.tiny_model()
    for audio in (clips, clips[0]):
        inputs = processor(audio)
        expected = model.generate(**inputs, max_new_tokens=6)
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, ctc_draft=True), expected)


def test_no_draft_goes_past_the_positions_that_a_language_model_has_learned(model_and_processor, clips, monkeypatch):
    model, processor = model_and_processor
    inputs = processor(clips[0])
    monkeypatch.setattr(model.model, "position_limit", inputs["input_ids"].shape[1] + 3)
    expected = model.generate(**inputs, max_new_tokens=3)
    write_draft(monkeypatch, model, [7] * 10)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, ctc_draft=True), expected)


def test_pipeline_streams_times_and_translations_with_drafts(model_and_processor, clips, monkeypatch, capsys):
    model, processor = model_and_processor
    pipe = PARTPipeline(model=model, processor=processor, max_new_tokens=8, device="cpu")
    drafts = []
    best_tokens = model.alignment_head.best_tokens
    monkeypatch.setattr(model.alignment_head, "best_tokens", lambda *args: drafts.append(1) or best_tokens(*args))
    assert pipe(clips, ctc_draft=True) == pipe(clips) and len(drafts) == 3
    assert list(pipe.stream(clips[0], ctc_draft=True))[-1] == pipe(clips[0])["text"]
    words = {"return_timestamps": "word"}
    assert pipe(clips[1], ctc_draft=True, **words) == pipe(clips[1], **words)
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    assert (
        pipe(clips[0], ctc_draft=True, generate_kwargs={"streamer": streamer})["text"]
        == capsys.readouterr().out.strip()
    )
    drafts.clear()
    translation = {"task": "s2tt", "target_lang": "fr"}
    assert pipe(clips[0], ctc_draft=True, **translation) == pipe(clips[0], **translation) and not drafts
    assert pipe(clips, ctc_draft=True, batch_size=3) == pipe(clips) and len(drafts) == 3
