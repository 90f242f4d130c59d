"""The model: loss, gradients, generation, and the language models that it is built from.

References are independent of the model: clips run one by one, a hand-written cross-entropy loop, the original
language model.
"""

import itertools
import math

import pytest
import torch
from architectures import (
    AUDIO_CONFIGS,
    AUDIO_TOKEN,
    LENGTHS,
    SHAPE,
    TEXT_CONFIGS,
    VOCABULARY,
    assert_same_weights,
    batch_clips,
    build,
    generated,
    inputs_of,
    pad_rows,
    prompts_of,
    random_clips,
    row_of,
    tokens_of,
    training_batch,
)
from named_models import text_config
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, FalconH1Config, GenerationConfig
from transformers.generation import utils as generation_utils

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq


def reference_loss(logits: torch.Tensor, labels: torch.Tensor, items: int | None = None) -> float:
    """Cross entropy, one position at a time, in plain Python."""
    total, count = 0.0, 0
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            target = int(labels[row, position])
            if target == -100:
                continue
            scores = logits[row, position - 1].double().tolist()
            highest = max(scores)
            total += highest + math.log(sum(math.exp(score - highest) for score in scores)) - scores[target]
            count += 1
    return total / (count if items is None else items)


class TestLoss:
    @pytest.mark.parametrize("items", [None, 11, 40])
    @pytest.mark.parametrize(("side", "extra"), [("right", 0), ("right", 6), ("left", 0), ("left", 6)])
    @torch.no_grad()
    def test_equals_a_hand_written_loop(self, side, extra, items):
        model = build()
        batch = training_batch(model, side, extra)
        labels = batch.pop("labels")
        expected = reference_loss(model(**batch).logits, labels, items)
        arguments = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
        assert model(**batch, labels=labels, **arguments).loss.item() == pytest.approx(expected, rel=1e-5)

    @torch.no_grad()
    def test_padding_side_does_not_matter(self):
        model = build()
        losses = [model(**training_batch(model, side, extra)).loss for side in ("left", "right") for extra in (0, 9)]
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("text", ["qwen2", "phi", "gemma2", "granite"])
    @torch.no_grad()
    def test_logits_only_at_targets(self, text):
        model = build(text=text)
        batch = training_batch(model)
        labels = batch.pop("labels")
        full = model(**batch).logits
        reached = []
        handle = model.lm_head.register_forward_hook(lambda module, arguments, output: reached.append(output.shape))
        kept = model(**batch, labels=labels).logits
        handle.remove()
        assert reached == [torch.Size([11, VOCABULARY])]
        targets = [(row, position - 1) for row, position in (labels != -100).nonzero().tolist()]
        expected = torch.stack([full[row, position] for row, position in targets])
        torch.testing.assert_close(kept, expected, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("text", ["qwen2", "phi", "gemma2", "granite"])
    @pytest.mark.parametrize("size", [1, 4, 5, 11, 100])
    def test_logits_of_some_targets_at_a_time(self, text, size):
        """Loss, gradients and the loss of every target as without chunks; no more rows reach the vocabulary at once."""
        model = build(text=text)
        batch = training_batch(model)
        plain = model(**batch, num_items_in_batch=torch.tensor(17))
        plain.loss.backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        reached = []
        handle = model.lm_head.register_forward_hook(lambda module, arguments, output: reached.append(output.shape[0]))
        chunked = model(**batch, num_items_in_batch=torch.tensor(17), loss_chunk_size=size)
        chunked.loss.backward()
        handle.remove()
        assert max(reached) == min(size, 11) and sum(reached) == (
            11 if size >= 11 else 22
        )  # again in the backward pass
        assert chunked.logits is None and plain.token_losses is None
        assert not chunked.token_losses.requires_grad
        targets = batch["labels"][batch["labels"] != -100]
        torch.testing.assert_close(
            chunked.token_losses,
            -plain.logits.detach().float().log_softmax(-1)[range(11), targets],
            rtol=1e-5,
            atol=1e-6,
        )
        torch.testing.assert_close(chunked.loss, plain.loss, rtol=1e-6, atol=1e-7)
        assert {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("text", ["qwen2", "phi", "gemma2", "granite"])
    def test_rows_packed_into_one(self, text, side, attention):
        """Loss, gradients and token losses as with padding, which the language model never sees."""
        if (text, attention) == ("gemma2", "sdpa"):
            pytest.skip("transformers' Gemma 2 has no sdpa attention")
        model = build(text=text)
        model.set_attn_implementation(attention)
        batch = training_batch(model, side, 6)
        plain = model(**batch, loss_chunk_size=4)
        plain.loss.backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        seen = []
        hook = model.model.language_model.layers[0].register_forward_hook(
            lambda module, arguments, output: seen.append(tuple(arguments[0].shape[:2]))
        )
        packed = model(**batch, loss_chunk_size=4, padding_free=True)
        packed.loss.backward()
        hook.remove()
        assert seen == [(1, int(batch["attention_mask"].sum()))] and batch["attention_mask"].min() == 0
        torch.testing.assert_close(packed.token_losses, plain.token_losses, rtol=1e-4, atol=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)

    @torch.no_grad()
    def test_logits_to_keep(self):
        model = build()
        batch = training_batch(model)
        del batch["labels"]
        full = model(**batch).logits
        mask = torch.rand(full.shape[:2]) < 0.5
        for keep, expected in ((2, full[:, -2:]), (torch.tensor([3, 1]), full[:, [3, 1]]), (mask, full[mask])):
            torch.testing.assert_close(model(**batch, logits_to_keep=keep).logits, expected, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("chunk", [None, 4])
    @torch.no_grad()
    def test_logits_to_keep_beside_labels(self, chunk):
        model = build()
        batch = training_batch(model)
        expected = model(**batch, loss_chunk_size=chunk)
        full = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        for keep, logits in ((0, full), (3, full[:, -3:]), (torch.tensor([3, 1]), full[:, [3, 1]])):
            given = model(**batch, logits_to_keep=keep, loss_chunk_size=chunk)
            assert torch.equal(given.loss, expected.loss)
            torch.testing.assert_close(given.logits, logits, atol=1e-6, rtol=1e-5)

    @torch.no_grad()
    def test_text_only_batches_skip_encoder_and_adapter(self):
        model = build()

        def refuse(*_):
            raise AssertionError("a text-only batch must not reach the audio")

        model.model.audio_tower.register_forward_pre_hook(refuse)
        model.model.adapter.register_forward_pre_hook(refuse)
        ids = torch.randint(5, 250, (2, 9))
        assert torch.isfinite(model(input_ids=ids, labels=ids).loss)
        assert model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2).shape[0] == 2

    @pytest.mark.parametrize("change", [-1, 1])
    def test_a_wrong_number_of_placeholders_is_refused(self, change):
        model = build()
        (clip,) = random_clips("whisper", [40])
        inputs = inputs_of(model, "whisper", [clip])
        count = tokens_of(model, clip)
        ids = torch.tensor([[5, *[AUDIO_TOKEN] * (count + change), 6]])
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        message = f"hold {count + change} audio placeholders .* give {count} audio embeddings"
        with pytest.raises(ValueError, match=message):
            model(**inputs)
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, max_new_tokens=2)

    @pytest.mark.parametrize("padding_free", [False, True])
    def test_labels_of_another_shape_are_refused(self, padding_free):
        """An encoder-decoder's labels, the answer alone, would be taken for positions of the first row."""
        model = build()
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        answers = torch.full((len(LENGTHS), 2), 5)
        with pytest.raises(
            ValueError, match=r"`labels` are of shape \(3, 2\) and the prompt of \(3, .*-100 on all but"
        ):
            model(**inputs, labels=answers, padding_free=padding_free)
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        with pytest.raises(ValueError, match=r"`labels` are of shape \(3, 2\)"):
            model(**inputs, inputs_embeds=embeds, labels=answers)

    @pytest.mark.parametrize("labels", [None, torch.tensor([[5, 6]])])
    def test_audio_without_a_prompt_is_refused(self, labels):
        model = build()
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS[:1]))
        features = {name: inputs[name] for name in ("input_features", "input_features_mask")}
        with pytest.raises(
            ValueError, match=r"neither `input_ids` nor `inputs_embeds`.* all that the processor gives"
        ):
            model(**features, labels=labels)

    def test_an_answer_ends_with_the_last_learned_position(self):
        model = build(text="gpt2")
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS[:1]))
        model.generation_config.eos_token_id = None
        length = inputs["input_ids"].shape[1]
        ids = model.generate(**inputs, max_new_tokens=300, do_sample=False)
        assert ids.shape[1] == model.model.position_limit == 256 < length + 300
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), ids[:, : length + 4])

    @pytest.mark.parametrize("text", ["qwen2", "gemma3", "gpt2"])  # Gemma 3 scales its embeddings
    @torch.no_grad()
    def test_audio_finds_its_place_among_embeddings(self, text):
        model = build(text=text)
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        expected = model(**inputs).logits
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(**inputs, inputs_embeds=embeds).logits, expected, atol=0, rtol=0)
        placeholder = model.get_input_embeddings()(torch.tensor(AUDIO_TOKEN))
        with pytest.raises(ValueError, match="audio placeholders"):
            model(**inputs, inputs_embeds=torch.cat([embeds[:, :-1], placeholder.expand(3, 1, -1)], 1))

    def test_audio_embeddings_land_in_order(self):
        model = build()
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        embeds = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        words = model.get_input_embeddings()(inputs["input_ids"])
        placed = model.model.place_audio(inputs["input_ids"] == AUDIO_TOKEN, words, embeds)
        source = iter(embeds)
        for row, position in itertools.product(*map(range, inputs["input_ids"].shape)):
            is_audio = inputs["input_ids"][row, position] == AUDIO_TOKEN
            assert torch.equal(placed[row, position], next(source) if is_audio else words[row, position])


class TestGradients:
    def test_a_frozen_language_model_passes_gradients_on(self):
        model = build()
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
        model(**training_batch(model)).loss.backward()
        for part in (model.model.adapter, model.model.audio_tower.layers):
            assert all(
                parameter.grad is not None and parameter.grad.any()
                for parameter in part.parameters()
                if parameter.ndim > 1
            )
        assert all(parameter.grad is None for parameter in model.model.language_model.parameters())

    @pytest.mark.parametrize("kind", ["whisper", "fun_asr_nano", "wav2vec2"])
    def test_checkpointing_gives_the_same_gradients(self, kind):
        model = build(kind).train()
        inputs = inputs_of(model, kind, random_clips(kind, LENGTHS), side="right")
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == AUDIO_TOKEN, -100)

        def gradients():
            model.zero_grad()
            model(**inputs, use_cache=False).loss.backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        expected = gradients()
        model.gradient_checkpointing_enable()
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.model.adapter.modules())
        given = gradients()
        assert given.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(given[name], gradient, atol=1e-6, rtol=1e-5, msg=name)

    def test_training_mode_is_deterministic_without_dropout(self):
        model = build("wav2vec2").train()
        inputs = inputs_of(model, "wav2vec2", random_clips("wav2vec2", LENGTHS))
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(2) + 1] if 2 in row else row


class TestGeneration:
    @pytest.fixture
    def model(self):
        return build()

    @pytest.fixture
    def inputs(self, model):
        return inputs_of(model, "whisper", random_clips("whisper", LENGTHS))

    def test_greedy_equals_a_hand_written_loop(self, model, inputs):
        """The whole sequence again at every step, right to left padding and all: no cache."""
        for index in range(len(LENGTHS)):
            alone = row_of(inputs, index)
            ids = alone["input_ids"]
            with torch.no_grad():
                for _ in range(6):
                    scores = model(**{**alone, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0, -1]
                    scores[AUDIO_TOKEN] = -torch.inf
                    ids = torch.cat([ids, scores.argmax()[None, None]], 1)
            expected = ids[0, alone["input_ids"].shape[1] :].tolist()
            given = generated(model, inputs, max_new_tokens=6)[index]
            assert until_end(given) == until_end(expected)

    def test_the_prompt_is_returned_first(self, model, inputs):
        ids = model.generate(**inputs, max_new_tokens=3)
        assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])

    def test_the_cache_changes_nothing(self, model, inputs):
        assert generated(model, inputs, use_cache=True) == generated(model, inputs, use_cache=False)

    def test_a_static_cache_changes_nothing(self, model, inputs):
        static = generated(model, inputs, cache_implementation="static", disable_compile=True)
        assert static == generated(model, inputs)

    def test_greedy_is_the_default(self, model, inputs):
        assert (
            model.generate(**inputs, max_new_tokens=6).tolist()
            == model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()
        )

    @pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "length_penalty": 2.0}])
    def test_beam_search_is_batch_invariant(self, model, inputs, settings):
        batched = generated(model, inputs, **settings)
        for index in range(len(LENGTHS)):
            assert generated(model, row_of(inputs, index), **settings)[0] == batched[index]

    def test_beam_search_finds_likelier_answers(self, model, inputs):
        def score(ids):
            kept = ids[:, inputs["input_ids"].shape[1] :]
            mask = torch.cat([inputs["attention_mask"], torch.ones_like(kept)], 1)
            with torch.no_grad():
                logits = model(**{**inputs, "input_ids": ids, "attention_mask": mask}).logits
            logits[..., AUDIO_TOKEN] = -torch.inf
            steps = logits[:, -kept.shape[1] - 1 : -1].log_softmax(-1).gather(-1, kept[..., None])[..., 0]
            return steps.sum(-1)

        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0}
        greedy, beams = (model.generate(**inputs, num_beams=beams, **settings) for beams in (1, 8))
        assert (score(beams) >= score(greedy) - 1e-4).all()

    @pytest.mark.parametrize(
        "settings", [{}, {"num_beams": 4}, {"do_sample": True, "num_return_sequences": 3}, {"use_cache": False}]
    )
    def test_the_encoder_runs_once(self, model, inputs, settings):
        seen = []
        handle = model.model.audio_tower.register_forward_pre_hook(
            lambda module, arguments, keywords: seen.append(keywords["input_features"].shape[0]), with_kwargs=True
        )
        model.generate(**inputs, max_new_tokens=4, **settings)
        handle.remove()
        assert seen == [len(LENGTHS)]

    def test_rows_without_audio_in_a_beam_search(self, model):
        """Every beam of a row gets that row's audio, whatever stands between the rows with audio."""
        clips = random_clips("whisper", [60, 25])
        rows = prompts_of(model, clips)
        features, features_mask = batch_clips("whisper", clips)
        ids, mask = pad_rows([rows[0], torch.arange(5, 14), rows[1]])
        inputs = dict(input_ids=ids, attention_mask=mask, input_features=features, input_features_mask=features_mask)
        batched = generated(model, inputs, num_beams=3)
        only_audio = inputs_of(model, "whisper", clips)
        assert [batched[0], batched[2]] == generated(model, only_audio, num_beams=3)
        text = {"input_ids": torch.arange(5, 14)[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
        assert batched[1] == generated(model, text, num_beams=3)[0]

    @pytest.mark.parametrize(
        "settings",
        [{}, {"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}],
    )
    @pytest.mark.parametrize("text", ["qwen2", "gemma3", "gpt2"])
    def test_from_embeddings_that_hold_the_placeholder_s(self, text, settings):
        model = build(text=text)
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        expected = generated(model, inputs, **settings)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **settings}
        assert model.generate(**inputs, inputs_embeds=embeds, **options)[:, -8:].tolist() == expected
        del inputs["input_ids"]
        assert model.generate(**inputs, inputs_embeds=embeds, **options).tolist() == expected

    @pytest.mark.skipif(
        not hasattr(generation_utils, "_slice_mm_encoder_output"), reason="older transformers' chunks lose the audio"
    )
    @pytest.mark.parametrize("size", [1, 7, 100])
    def test_a_prompt_in_chunks_changes_nothing(self, model, inputs, size):
        assert generated(model, inputs, prefill_chunk_size=size) == generated(model, inputs)

    @pytest.mark.parametrize("text", ["qwen2", "gemma3", "gpt2"])
    def test_speculation_changes_nothing(self, text):
        model = build(text=text)
        alone = row_of(inputs_of(model, "whisper", random_clips("whisper", LENGTHS)), 0)
        expected = generated(model, alone)
        assert generated(model, alone, prompt_lookup_num_tokens=2) == expected
        for seed in (0, 1):  # an assistant that always agrees, and one that hardly does
            assert generated(model, alone, assistant_model=build(text=text, seed=seed)) == expected

    def test_speculation_is_refused_where_the_language_model_takes_nothing_back(self, monkeypatch):
        """As by the language model itself: tokens that were proposed and refused stay in its state."""
        monkeypatch.setitem(TEXT_CONFIGS, "falcon_h1", lambda: text_config("falcon_h1"))
        model = build(text="falcon_h1")
        alone = row_of(inputs_of(model, "whisper", random_clips("whisper", LENGTHS)), 0)
        for given in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": build()}):
            with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
                generated(model, alone, **given)

    def test_going_on_from_a_cache(self, model, inputs):
        alone = row_of(inputs, 0)
        half = model.generate(**alone, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
        ids = half.sequences
        whole = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=half.past_key_values,
            max_new_tokens=4,
            min_new_tokens=4,
        )
        assert torch.equal(whole, model.generate(**alone, max_new_tokens=8, min_new_tokens=8))

    @pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
    def test_audio_that_is_encoded_already(self, model, inputs, settings):
        expected = generated(model, inputs, **settings)
        features, mask = inputs.pop("input_features"), inputs.pop("input_features_mask")
        audio = model.get_audio_features(features, mask)
        assert generated(model, {**inputs, "mm_encoder_outputs": {"audio": audio}}, **settings) == expected
        assert len(audio.pooler_output) == sum(tokens_of(model, clip) for clip in random_clips("whisper", LENGTHS))

    def test_sampling_and_returned_sequences(self, model, inputs):
        def sample():
            torch.manual_seed(0)
            return model.generate(
                **inputs, do_sample=True, temperature=5.0, num_return_sequences=4, max_new_tokens=8, pad_token_id=0
            )

        ids = sample()
        assert ids.shape[0] == 12
        assert torch.equal(ids, sample())
        prompt = inputs["input_ids"].shape[1]
        assert torch.equal(ids[:, :prompt], inputs["input_ids"].repeat_interleave(4, 0))
        assert len({tuple(row) for row in ids[:4, prompt:].tolist()}) > 1

    def test_repetition_penalty(self, model, inputs):
        plain, penalised = generated(model, inputs), generated(model, inputs, repetition_penalty=50.0)
        assert plain != penalised
        assert all(len(set(row)) == len(row) for row in penalised)

    def test_the_placeholder_is_never_generated(self, inputs):
        model = build()
        # Make the placeholder by far the likeliest token.
        head = nn.Linear(32, VOCABULARY)
        head.load_state_dict({"weight": model.lm_head.weight, "bias": torch.zeros(VOCABULARY)})
        with torch.no_grad():
            head.bias[AUDIO_TOKEN] = 1e4
        model.lm_head = head
        settings_list = [
            {},
            {"num_beams": 2},
            {"do_sample": True},
            {"generation_config": GenerationConfig(max_new_tokens=4)},
        ]
        for settings in settings_list:
            ids = model.generate(**inputs, **{"max_new_tokens": 4, **settings})
            assert not (ids[:, inputs["input_ids"].shape[1] :] == AUDIO_TOKEN).any(), settings

    def test_scores_are_returned(self, model, inputs):
        output = model.generate(
            **inputs,
            num_beams=3,
            num_return_sequences=2,
            max_new_tokens=3,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert output.sequences.shape[0] == output.sequences_scores.shape[0] == 6


@pytest.mark.parametrize("audio", ["wav2vec2", "wav2vec2_group", "w2v_bert", "fun_asr_nano", "qwen2_audio"])
@torch.no_grad()
def test_features_come_in_the_encoders_precision(audio):
    """As the processor gives them, in float32: not every encoder of transformers casts them itself."""
    model = build(audio)
    inputs = inputs_of(model, audio, random_clips(audio, LENGTHS))
    expected = model(**inputs).logits
    given = model.to(torch.bfloat16)(**inputs).logits.float()
    assert (given - expected).abs().max() < 0.2 * expected.std()


class TestLanguageModels:
    @pytest.mark.parametrize("text", [*TEXT_CONFIGS, "falcon_h1"])
    @torch.no_grad()
    def test_text_gives_the_original_logits(self, text):
        if text == "falcon_h1":
            mamba = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8)
            text_config = FalconH1Config(**SHAPE, **mamba, num_key_value_heads=2, lm_head_multiplier=0.3)
        else:
            text_config = TEXT_CONFIGS[text]()
        torch.manual_seed(0)
        original = AutoModelForCausalLM.from_config(text_config).eval()
        model = PARTForSpeechSeq2Seq(
            PARTConfig(audio_config=AUDIO_CONFIGS["whisper"](), text_config=text_config)
        ).eval()
        model.model.language_model.load_state_dict(original.base_model.state_dict())
        model.lm_head.load_state_dict(original.get_output_embeddings().state_dict())
        ids = torch.randint(5, 250, (2, 20))
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits, atol=1e-6, rtol=1e-5)

    def test_resized_with_an_alignment_head(self, tmp_path):
        model = build()
        counts = torch.zeros(VOCABULARY)
        counts[5] = 100
        model.add_alignment_head(counts)
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        inputs["transcript_ids"] = torch.full((len(LENGTHS), 2), 5)
        model.resize_token_embeddings(VOCABULARY + 44)
        model.save_pretrained(tmp_path)
        loaded = PARTForSpeechSeq2Seq.from_pretrained(tmp_path)
        assert loaded.alignment_head.known_tokens().tolist() == [5]
        with torch.no_grad():
            options = {"nll_weight": 0.0, "ctc_weight": 1.0, "num_items_in_batch": 1}
            losses = [one(**inputs, **options).ctc_losses for one in (model, loaded)]
        assert torch.equal(*losses) and losses[0].min() > 0

    def test_the_placeholder_is_not_cut_off(self):
        model = build()
        with pytest.raises(ValueError, match=rf"With {AUDIO_TOKEN} embeddings .* keep {AUDIO_TOKEN + 1} or more"):
            model.resize_token_embeddings(AUDIO_TOKEN)
        assert model.get_input_embeddings().num_embeddings == VOCABULARY
        assert model.resize_token_embeddings(AUDIO_TOKEN + 1).num_embeddings == AUDIO_TOKEN + 1

    @pytest.mark.parametrize("text", list(TEXT_CONFIGS))
    def test_saved_loaded_resized(self, text, tmp_path):
        model = build(text=text)
        tied = model.config.text_config.tie_word_embeddings
        assert model.config.tie_word_embeddings is tied
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
        model.save_pretrained(tmp_path)
        assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
        loaded = PARTForSpeechSeq2Seq.from_pretrained(tmp_path)
        assert loaded.generation_config.suppress_tokens == [AUDIO_TOKEN]
        assert_same_weights(loaded, model)
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        with torch.no_grad():
            expected = model(**inputs).logits
            assert torch.equal(loaded(**inputs).logits, expected)
            loaded.resize_token_embeddings(300)
            torch.testing.assert_close(loaded(**inputs).logits[..., :VOCABULARY], expected, atol=1e-6, rtol=1e-5)
        assert loaded.config.text_config.vocab_size == 300
        assert loaded.lm_head.weight.shape[0] == loaded.get_input_embeddings().num_embeddings == 300
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
        loaded.save_pretrained(tmp_path / "resized")
        assert_same_weights(PARTForSpeechSeq2Seq.from_pretrained(tmp_path / "resized"), loaded)

    @pytest.mark.parametrize("text", ["llama_tied", "gpt2", "gemma2", "granite"])
    def test_generation_with_a_cache_and_left_padding(self, text):
        model = build(text=text)
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        batched = generated(model, inputs)
        assert batched == generated(model, inputs, use_cache=False)
        for index in range(len(LENGTHS)):
            assert generated(model, row_of(inputs, index))[0] == batched[index]
