"""The alignment head: CTC in the language model's embedding space, against torch's own over the whole vocabulary."""

from types import SimpleNamespace

import pytest
import tiny_training
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from modeling_part import PARTForSpeechSeq2Seq, alignment_part
from modeling_part.alignment_part import MATCH_SCORE, PARTAlignmentHead, alignment_scale, collapse
from modeling_part.data.collator import PARTCollator
from modeling_part.recipes.arguments import DataArguments, ModelArguments, PARTTrainingArguments, Recipe
from modeling_part.recipes.stages import Stage
from modeling_part.training.checkpoints import restore_weights, save_weights
from modeling_part.training.setup import prepare_model


VOCABULARY, WIDTH = 40, 8


def make_head(seed: int = 0) -> PARTAlignmentHead:
    config = SimpleNamespace(
        alignment_scale=0.5, text_config=SimpleNamespace(hidden_size=WIDTH, vocab_size=VOCABULARY)
    )
    head = PARTAlignmentHead(config)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.blank, generator=generator)
    head.set_token_frequencies(torch.randint(0, 9, (VOCABULARY,), generator=generator))
    return head


def torch_ctc(head, audio_embeds, lengths, transcripts, embeddings):
    """By the definition: a softmax over the blank and the whole vocabulary, then torch's CTC."""
    log_probs = head.scores(audio_embeds, embeddings, head.token_bias).log_softmax(-1).split(lengths.tolist())
    return nn.functional.ctc_loss(
        nn.utils.rnn.pad_sequence(log_probs),
        transcripts.clamp(min=0) + 1,
        lengths,
        (transcripts != -100).sum(-1),
        reduction="none",
        zero_infinity=True,
    )


@st.composite
def batches(draw):
    clips = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 9), min_size=clips, max_size=clips))
    texts = draw(
        st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6), min_size=clips, max_size=clips)
    )
    width = max(map(len, texts))
    transcripts = torch.tensor([text + [-100] * (width - len(text)) for text in texts])
    return torch.tensor(lengths), transcripts, draw(st.integers(0, 1000))


# Three of a kind take five audio tokens: four and five of them, which chance hardly ever draws.
@example((torch.tensor([4, 5]), torch.tensor([[7, 7, 7], [7, 7, 7]]), 0))
@settings(deadline=None, max_examples=40)
@given(batches())
def test_losses_and_gradients_are_those_of_the_whole_vocabulary(batch):
    lengths, transcripts, seed = batch
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(VOCABULARY, WIDTH, generator=generator)
    audio = torch.randn(int(lengths.sum()), WIDTH, generator=generator, requires_grad=True)
    head = make_head(seed)
    losses, counted = head.losses(audio, lengths, transcripts, embeddings)
    gradients = torch.autograd.grad(losses.sum(), (audio, head.blank))
    expected = torch_ctc(head, audio, lengths, transcripts, embeddings)
    expected_gradients = torch.autograd.grad(expected.sum(), (audio, head.blank))
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)
    repeats = ((transcripts[:, 1:] == transcripts[:, :-1]) & (transcripts[:, 1:] != -100)).sum(-1)
    assert counted.tolist() == ((transcripts != -100).sum(-1) + repeats <= lengths).tolist()


def test_chunks_change_nothing(monkeypatch):
    lengths, transcripts = torch.tensor([5, 4]), torch.tensor([[1, 2, 2], [7, -100, -100]])
    embeddings = torch.randn(VOCABULARY, WIDTH)
    audio = torch.randn(9, WIDTH, requires_grad=True)
    head = make_head()
    whole = head.losses(audio, lengths, transcripts, embeddings)[0]
    expected = torch.autograd.grad(whole.sum(), (audio, head.blank))
    monkeypatch.setattr(alignment_part, "CHUNK_SIZE", 2)
    chunked = head.losses(audio, lengths, transcripts, embeddings)[0]
    torch.testing.assert_close(chunked, whole)
    for gradient, wanted in zip(torch.autograd.grad(chunked.sum(), (audio, head.blank)), expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_rows_without_a_transcript_are_left_out():
    head, audio = make_head(), torch.randn(6, WIDTH, requires_grad=True)
    transcripts = torch.tensor([[-100, -100], [3, 4]])
    losses, counted = head.losses(audio, torch.tensor([3, 3]), transcripts, torch.randn(VOCABULARY, WIDTH))
    assert counted.tolist() == [False, True] and losses[0] == 0
    (gradient,) = torch.autograd.grad(losses.sum(), audio)
    assert not gradient[:3].any() and gradient[3:].any()


def test_the_bias_is_the_log_frequency_and_leaves_no_token_out():
    head = make_head()
    counts = torch.zeros(VOCABULARY)
    counts[3], counts[5] = 300, 100
    head.set_token_frequencies(counts)
    assert head.token_bias[3] == 0 and head.token_bias.isfinite().all()
    assert head.token_bias[5].item() == pytest.approx(torch.tensor(1 / 3).log().item(), abs=1e-2)
    assert (head.token_bias[counts == 0] < -5).all()


@pytest.mark.parametrize("size", [0.02, 1.0])
def test_a_match_scores_the_same_whatever_the_size_of_the_embeddings(size):
    embeddings = torch.randn(VOCABULARY, WIDTH) * size
    scores = alignment_scale(embeddings) * (embeddings * embeddings).sum(-1)
    assert scores.mean().item() == pytest.approx(MATCH_SCORE, rel=1e-4)


def test_greedy_ctc_reads_what_the_audio_tokens_equal():
    head, embeddings = make_head(), nn.functional.normalize(torch.randn(VOCABULARY, WIDTH), dim=-1)
    head.set_token_frequencies(torch.ones(VOCABULARY))
    with torch.no_grad():
        head.scale = alignment_scale(embeddings)
        head.blank.copy_(-embeddings[[4, 9]].sum(0))
    audio = torch.stack([embeddings[4], embeddings[4], head.blank.detach(), embeddings[4], embeddings[9]])
    assert collapse(head.best_tokens(audio, embeddings).tolist()) == [4, 4, 9]


def test_greedy_ctc_among_some_tokens_is_that_of_a_vocabulary_of_these():
    head, embeddings, audio = make_head(), torch.randn(VOCABULARY, WIDTH), 0.1 * torch.randn(30, WIDTH)
    counts = torch.zeros(VOCABULARY)
    counts[[3, 8, 11]] = 5
    head.set_token_frequencies(counts)
    known = head.known_tokens()
    assert known.tolist() == [3, 8, 11]
    scores = head.scores(audio, embeddings, head.token_bias)[:, [0, 4, 9, 12]]
    expected = torch.tensor([-1, 3, 8, 11])[scores.argmax(-1)]
    assert torch.equal(head.best_tokens(audio, embeddings, known), expected) and (expected >= 0).any()
    head.set_token_frequencies(torch.ones(VOCABULARY))
    assert head.known_tokens() is None


# ---- in the model ----


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def aligned(request):
    """A tiny model with a head, untied and tied, its processor and a batch of transcription."""
    model, processor = tiny_training.aligned_model(request.param)
    rows = [row for row in tiny_training.tiny_dataset() if row["task"] == "asr"][:3]
    batch = PARTCollator(processor, with_transcripts=True)(rows)
    batch.pop("batch_info")
    return model, processor, batch


def test_what_is_said_must_be_given(aligned):
    model, _, batch = aligned
    with pytest.raises(ValueError, match="`ctc_weight` needs `transcript_ids`"):
        model(
            **{name: value for name, value in batch.items() if name not in ("transcript_ids", "layout")},
            ctc_weight=1.0,
        )


def test_without_the_answers_loss_the_language_model_does_not_run(aligned):
    model, _, batch = aligned
    calls = []
    hook = model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    output = model(**batch, nll_weight=0.0, ctc_weight=1.0)
    hook.remove()
    assert not calls and output.loss > 0 and output.logits is None
    assert output.loss.item() == pytest.approx(output.ctc_losses.sum().item() / (batch["labels"] != -100).sum().item())


def test_the_language_model_gets_no_gradient_from_the_alignment(aligned):
    model, _, batch = aligned
    model.requires_grad_(True)
    model.zero_grad()
    model(**batch, nll_weight=0.0, ctc_weight=1.0).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not {name for name in reached if name.startswith(("model.language_model.", "lm_head."))}
    assert "alignment_head.blank" in reached
    assert {name for name in reached if name.startswith("model.audio_tower.")}
    assert {name for name in reached if name.startswith("model.adapter.")} == {
        name for name, _ in model.named_parameters() if name.startswith("model.adapter.")
    }
    model.zero_grad()


def test_the_losses_add_up(aligned):
    model, _, batch = aligned
    nll = model(**batch).loss
    ctc = model(**batch, nll_weight=0.0, ctc_weight=1.0).loss
    both = model(**batch, nll_weight=0.5, ctc_weight=2.0, num_items_in_batch=(batch["labels"] != -100).sum()).loss
    torch.testing.assert_close(both, 0.5 * nll + 2.0 * ctc)


def test_the_head_travels_with_the_checkpoint(aligned, tmp_path):
    model, _, batch = aligned
    model.save_pretrained(tmp_path)
    loaded = PARTForSpeechSeq2Seq.from_pretrained(tmp_path).eval()
    for name, tensor in model.alignment_head.state_dict().items():
        assert torch.equal(tensor, loaded.alignment_head.state_dict()[name]), name
    model.eval()
    options = {"nll_weight": 0.0, "ctc_weight": 1.0}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch, **options).loss, model(**batch, **options).loss)


def test_a_model_without_a_head_says_how_to_get_one():
    model, processor = tiny_training.tiny_model()
    assert "alignment_head.blank" not in model.state_dict()
    rows = [row for row in tiny_training.tiny_dataset() if row["task"] == "asr"][:1]
    batch = PARTCollator(processor, with_transcripts=True)(rows)
    batch.pop("batch_info")
    with pytest.raises(ValueError, match="no alignment head"):
        model(**batch, ctc_weight=1.0)


@pytest.mark.parametrize("nll_weight", [0.0, 1.0])
def test_packed_clips_and_kept_encoder_frames_give_the_same(aligned, nll_weight):
    model, _, batch = aligned
    model.eval()
    options = {"nll_weight": nll_weight, "ctc_weight": 0.5, "loss_chunk_size": 8}
    with torch.no_grad():
        expected = model(**batch, **options)
        packed = model(**batch, **options, padding_free=True)
        kept = {name: value for name, value in batch.items() if name != "input_features"}
        frames = model.model.encode(batch["input_features"], batch["input_features_mask"]).last_hidden_state
        from_frames = model(**kept, **options, encoder_frames=frames)
    for output in (packed, from_frames):
        torch.testing.assert_close(output.ctc_losses, expected.ctc_losses, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.loss, expected.loss, atol=1e-4, rtol=1e-4)
        assert torch.equal(output.ctc_tokens, expected.ctc_tokens)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(aligned, half):
    model, _, batch = aligned
    expected = model(**batch, nll_weight=0.0, ctc_weight=1.0).ctc_losses
    with torch.autocast("cpu", half):
        given = model(**batch, nll_weight=0.0, ctc_weight=1.0).ctc_losses
    torch.testing.assert_close(given, expected, atol=0.3, rtol=0.05)


def test_a_checkpoints_head_counts_the_tokens_of_the_new_run():
    """A new language's tokens would otherwise start as the rarest; its own stages keep what the first one has set."""
    model, _ = tiny_training.tiny_model()
    size = model.config.text_config.vocab_size
    before, after = torch.zeros(size), torch.zeros(size)
    before[5] = after[7] = 100
    model.add_alignment_head(before)
    stage = Stage("joint", tasks={"asr": 1.0}, learning_rates={"adapter": 1e-3}, losses={"nll": 1.0, "ctc": 0.5})
    recipe = Recipe(ModelArguments(checkpoint="tiny"), DataArguments(), PARTTrainingArguments(use_cpu=True))
    blank = model.alignment_head.blank.clone()
    for is_aligned, frequent in ((True, 5), (False, 7)):
        prepare_model(model, stage, recipe, lambda _: after, is_aligned=is_aligned)
        assert model.alignment_head.token_bias.argmax() == frequent
    assert torch.equal(model.alignment_head.blank, blank)


def test_a_head_beside_bfloat16_is_after_a_resume_what_it_was_before(tmp_path):
    """Of one dtype with the rest, which FSDP2 shards as one; in float32 it would be saved rounded."""
    stage = tiny_training.joint_stage(losses={"nll": 1.0, "ctc": 0.5}, tuning="full")
    models = []
    for count in (1, 9):
        model = tiny_training.tiny_model()[0].to(torch.bfloat16)
        model.config.dtype = torch.bfloat16
        model.add_alignment_head(torch.arange(model.config.text_config.vocab_size) * count)
        models.append(model)
    trained, resumed = models
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.bfloat16}
    save_weights(trained, stage, tmp_path)
    restore_weights(resumed, tmp_path, stage)
    for name, tensor in trained.alignment_head.state_dict().items():
        assert torch.equal(resumed.alignment_head.state_dict()[name], tensor), name
