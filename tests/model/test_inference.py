"""Generation and loading the way transformers users do it: streaming, beams, n-best, dtypes, devices, quantisation."""

import json
import shutil
import threading
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from transformers import (
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    BitsAndBytesConfig,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor


NEW_TOKENS = 12


@pytest.fixture(scope="module")
def processor(tiny_checkpoint) -> PARTProcessor:
    return AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def model(tiny_checkpoint) -> PARTForSpeechSeq2Seq:
    return AutoModelForSpeechSeq2Seq.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def inputs(processor):
    generator = np.random.default_rng(0)
    clips = [tiny.sentence_sound("en", (0, 3, 2), generator), tiny.sentence_sound("en", (5,), generator)]
    return processor(clips, source_lang="en")


@pytest.fixture(scope="module")
def one(processor):
    return processor(tiny.sentence_sound("en", (0, 3, 2), np.random.default_rng(0)), source_lang="en")


def new_ids(inputs, ids: torch.Tensor) -> torch.Tensor:
    return ids[:, inputs["input_ids"].shape[1] :]


def log_probability(model, inputs, answer: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token of one answer in one teacher-forced pass, the placeholder excluded."""
    ids = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    audio = {name: inputs[name] for name in ("input_features", "input_features_mask")}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **audio).logits[0]
    logits[:, model.config.audio_token_id] = -torch.inf  # as generation suppresses it
    predictions = logits[inputs["input_ids"].shape[1] - 1 : -1].log_softmax(-1)
    return predictions.gather(1, answer[:, None])[:, 0]


# --------------------------------------------------------------------------------------------------------------------
# Decoding
# --------------------------------------------------------------------------------------------------------------------


def test_greedy_decoding_takes_the_most_probable_token(model, one):
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    answer = new_ids(one, model.generate(**one, **options))[0]
    ids = torch.cat([one["input_ids"], answer[None, :-1]], dim=1)
    audio = {name: one[name] for name in ("input_features", "input_features_mask")}
    with torch.no_grad():
        logits = model(input_ids=ids, **audio, logits_to_keep=NEW_TOKENS).logits[0]
    # What generation forbids: the placeholder, and an end before the shortest length asked for.
    logits[:, [model.config.audio_token_id, *model.generation_config.eos_token_id]] = -torch.inf
    torch.testing.assert_close(logits.gather(1, answer[:, None])[:, 0], logits.amax(1), atol=1e-4, rtol=1e-4)


def test_a_longer_answer_begins_with_the_shorter_one(model, one):
    whole = new_ids(one, model.generate(**one, max_new_tokens=NEW_TOKENS))[0]
    for length in (1, 5, NEW_TOKENS):
        answer = new_ids(one, model.generate(**one, max_new_tokens=length, num_beams=1))[0]
        torch.testing.assert_close(answer, whole[:length])


def test_batch_of_unequal_clips_gives_each_clip_s_own_answer(model, processor, inputs):
    together = new_ids(inputs, model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS))
    generator = np.random.default_rng(0)
    for row, words in enumerate([(0, 3, 2), (5,)]):
        alone = processor(tiny.sentence_sound("en", words, generator), source_lang="en")
        ids = model.generate(**alone, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
        torch.testing.assert_close(new_ids(alone, ids)[0], together[row])


def test_n_best_with_scores(model, one):
    out = model.generate(
        **one,
        num_beams=4,
        num_return_sequences=3,
        max_new_tokens=6,
        min_new_tokens=6,
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = new_ids(one, out.sequences)
    assert len({tuple(answer) for answer in answers.tolist()}) == 3
    assert out.sequences_scores.tolist() == sorted(out.sequences_scores.tolist(), reverse=True)
    for answer, score in zip(answers, out.sequences_scores, strict=True):
        # The end token is forbidden until the last step, which renormalises nothing: scores are raw log-probabilities.
        torch.testing.assert_close(score, log_probability(model, one, answer).mean(), atol=1e-3, rtol=1e-3)


def test_beam_search_finds_nothing_worse_than_greedy(model, one):
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    greedy = new_ids(one, model.generate(**one, **options))[0]
    beam = new_ids(one, model.generate(**one, num_beams=8, **options))[0]
    assert log_probability(model, one, beam).sum() >= log_probability(model, one, greedy).sum() - 1e-4


def test_sampling_follows_the_seed_and_the_temperature(model, one):
    def sample(seed: int, **options) -> list[int]:
        torch.manual_seed(seed)
        ids = model.generate(**one, do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS, **options)
        return new_ids(one, ids)[0].tolist()

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)
    # So cold that no two logits of this random model, which can be close, are a draw.
    assert sample(0, temperature=1e-8) == new_ids(one, model.generate(**one, max_new_tokens=NEW_TOKENS))[0].tolist()


def test_repetition_control(model, one):
    options = {"max_new_tokens": 40, "min_new_tokens": 40}
    free = new_ids(one, model.generate(**one, **options))[0].tolist()
    held = new_ids(one, model.generate(**one, no_repeat_ngram_size=2, **options))[0].tolist()
    assert len(set(pairwise(free))) < 39  # a random model loops
    assert len(set(pairwise(held))) == 39
    penalised = new_ids(one, model.generate(**one, repetition_penalty=5.0, **options))[0].tolist()
    assert len(set(penalised)) > len(set(free))


@pytest.mark.parametrize("beams", [1, 3])
def test_a_static_cache_gives_the_same_answers(model, inputs, beams):
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "num_beams": beams}
    expected = model.generate(**inputs, **options)
    static = model.generate(**inputs, **options, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_audio_is_encoded_once_and_one_position_per_row_reaches_the_vocabulary(model, inputs, beams, monkeypatch):
    clips, positions = [], []
    encode = type(model.model).encode
    monkeypatch.setattr(
        type(model.model),
        "encode",
        lambda self, features, *args, **kwargs: clips.append(len(features)) or encode(self, features, *args, **kwargs),
    )
    hook = model.lm_head.register_forward_hook(
        lambda module, arguments, output: positions.append(tuple(arguments[0].shape[:2]))
    )
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, num_beams=beams)
    hook.remove()
    assert clips == [2]
    assert positions == [(2 * beams, 1)] * 4  # the prompt once, then a token at a time


def test_features_without_a_prompt_are_refused_with_what_to_give(model, one):
    """As Whisper takes them."""
    features = one["input_features"]
    for args, given in (([features], {}), ([], {"inputs": features}), ([], {"input_features": features})):
        with pytest.raises(
            ValueError, match=r"audio features, but no prompt .*`model\.generate\(\*\*processor\(audio\)\)"
        ):
            model.generate(*args, **given)
    expected = model.generate(**one, max_new_tokens=4)
    ids = one["input_ids"]
    others = {name: value for name, value in one.items() if name != "input_ids"}
    assert torch.equal(model.generate(ids, **others, max_new_tokens=4), expected)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **others, max_new_tokens=4), new_ids(one, expected))


def test_placeholder_is_never_generated(model, one):
    torch.manual_seed(0)
    ids = model.generate(**one, do_sample=True, temperature=100.0, top_k=0, max_new_tokens=200, num_return_sequences=4)
    assert not (new_ids(one, ids) == model.config.audio_token_id).any()


def test_language_and_prompt_reach_the_model(model, processor):
    clip = tiny.sentence_sound("en", (0, 1), np.random.default_rng(0))
    answers = set()
    for request in (
        {"source_lang": "en"},
        {"source_lang": "de"},
        {"task": "s2tt", "source_lang": "en", "target_lang": "fr"},
        {"prompt": "Count the speakers."},
    ):
        inputs = processor(clip, **request)
        with torch.no_grad():
            answers.add(tuple(model(**inputs, logits_to_keep=1).logits.flatten().tolist()))
    assert len(answers) == 4


# --------------------------------------------------------------------------------------------------------------------
# Streaming and decoding to text
# --------------------------------------------------------------------------------------------------------------------


def test_text_is_streamed_from_a_thread(model, processor, one):
    allowed = processor.tokenizer.convert_tokens_to_ids(["a", "b", "Ġ"])  # words appear when their space does
    options = {
        "suppress_tokens": sorted(set(range(model.config.text_config.vocab_size)) - set(allowed)),
        "do_sample": True,
        "max_new_tokens": 30,
    }
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    torch.manual_seed(0)
    thread = threading.Thread(target=model.generate, kwargs={**one, **options, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join(60)
    torch.manual_seed(0)
    ids = model.generate(**one, **options)
    assert "".join(pieces) == processor.batch_decode(new_ids(one, ids), skip_special_tokens=True)[0]
    assert len([piece for piece in pieces if piece]) > 2


def test_text_is_printed_while_it_is_generated(model, processor, one, capsys):
    model.generate(**one, streamer=TextStreamer(processor.tokenizer, skip_prompt=True), max_new_tokens=NEW_TOKENS)
    printed = capsys.readouterr().out
    ids = model.generate(**one, max_new_tokens=NEW_TOKENS)
    assert printed.removesuffix("\n") == processor.batch_decode(new_ids(one, ids))[0]


@pytest.mark.parametrize("with_template", [True, False])
@pytest.mark.parametrize("answer", ["bonjour", "one\ntwo", ""])
def test_decoding_skips_a_prompt_with_audio(processor, with_template, answer):
    """`transformers serve` decodes all that `generate` returns; a base model has no chat template."""
    template = tiny.CHAT_TEMPLATE if with_template else None
    tokenizer = processor.tokenizer
    saved, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        prompt = processor(np.zeros(16_000, np.float32), source_lang="en")["input_ids"][0].tolist()
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        padding = [tokenizer.pad_token_id] * 3
        decoded = processor.batch_decode([padding + prompt + tokens, tokens], skip_special_tokens=True)
        assert decoded == [answer, answer]
        assert "Transcribe" in processor.batch_decode([prompt + tokens])[0]
    finally:
        tokenizer.chat_template = saved


def test_whole_prompts_with_placeholders_are_filled(processor):
    """As vLLM's Transformers backend calls processors."""
    clips = [np.zeros(samples, np.float32) for samples in (16_000, 9_000)]
    prompt = "<|im_start|>user\n<|audio|>\nTranscribe the speech.<|im_end|>\n<|im_start|>assistant\n"
    expected = processor(clips)
    filled = processor(text=[prompt] * 2, audio=clips, return_text_replacement_offsets=True, truncation=False)
    offsets = filled.pop("text_replacement_offsets")
    assert filled.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(filled[name], tensor)
    for row, (entry,) in enumerate(offsets):
        count = int((expected["input_ids"][row] == processor.audio_token_id).sum())
        assert (entry["type"], entry["replacement"]) == ("audio", "<|audio|>" * count)
    with pytest.raises(ValueError, match=r"2 placeholders for 1 clips"):
        processor(text=[prompt, prompt], audio=clips[:1], return_text_replacement_offsets=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("cache", [None, "static", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_leaderboard_s_script(tiny_checkpoint, cache, batch_size, dtype):
    """The calls of the Open ASR Leaderboard's run_eval.py, in its order; every batch size and cache says the same."""
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    assert type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_checkpoint, dtype=dtype).to("cpu").eval()
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    model.generation_config.suppress_tokens = []
    generator = np.random.default_rng(0)
    clips = [tiny.sentence_sound("en", words, generator) for words in ((0, 3, 2), (5,), (1, 2), (4, 4), (2,))]
    clips = (clips * 4)[:17]
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": None}
    if cache is not None:
        model.generation_config.cache_implementation = "static"
        settings["disable_compile"] = cache == "static"

    def texts(size: int) -> list[str]:
        found = []
        for start in range(0, len(clips), size):
            inputs = processor.apply_transcription_request(clips[start : start + size]).to("cpu", dtype=dtype)
            ids = model.generate(**inputs, **settings)
            found += processor.decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return found

    given = texts(batch_size)
    assert len(given) == 17 and all(isinstance(text, str) for text in given)
    if dtype == torch.float32:  # in bfloat16 padding moves what is nearly a draw in a random model
        assert given == texts(2)


def test_every_surface_asks_the_same_by_default(processor, model, monkeypatch):
    """A transcript with the language left unnamed, in the one wording of `INSTRUCTIONS`."""
    clip = tiny.sentence_sound("en", (0, 3, 2), np.random.default_rng(0))
    chat = [{"role": "user", "content": [{"type": "audio", "audio": clip}]}]
    asked = {
        "call": processor(clip)["input_ids"],
        "request": processor.apply_transcription_request(clip)["input_ids"],
        "chat": processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True),
    }
    pipe = pipeline("automatic-speech-recognition", model=model, processor=processor)
    monkeypatch.setattr(
        pipe.model, "generate", lambda **inputs: asked.update(pipeline=inputs["input_ids"]) or inputs["input_ids"]
    )
    pipe(clip)
    wording = processor.tokenizer(f"\n{processor.instruction('asr')}<|im_end|>")["input_ids"]
    for surface, ids in asked.items():
        assert torch.equal(ids, asked["call"]), surface
    placeholders = (asked["call"][0] == processor.audio_token_id).nonzero()
    assert asked["call"][0, placeholders.max() + 1 :].tolist()[: len(wording)] == wording


def test_audio_features_take_the_masks_one_by_one(model, inputs):
    """As vLLM gives them for clips of unequal lengths."""
    features, mask = inputs["input_features"], inputs["input_features_mask"]
    with torch.no_grad():
        whole = model.get_audio_features(features, mask).pooler_output
        listed = model.get_audio_features(features, list(mask)).pooler_output
    torch.testing.assert_close(listed, whole)


# --------------------------------------------------------------------------------------------------------------------
# Loading
# --------------------------------------------------------------------------------------------------------------------


def answer_of(model, one) -> list[int]:
    one = one.to(model.device)
    return new_ids(one, model.generate(**one, max_new_tokens=NEW_TOKENS))[0].tolist()


def test_stage_folder_loads_into_plain_inference(tiny_checkpoint, model, one, tmp_path):
    """The folder of a stage holds more than a checkpoint; nothing of it is missing or unexpected."""
    stage = tmp_path / "joint"
    shutil.copytree(tiny_checkpoint, stage)
    (stage / "stage.json").write_text(json.dumps({"stage": "joint", "parent": "encoder"}))
    loaded, info = AutoModelForSpeechSeq2Seq.from_pretrained(stage, output_loading_info=True)
    assert not any(info.values())
    assert answer_of(loaded, one) == answer_of(model, one)


@pytest.mark.parametrize(
    "attention",
    ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)],  # minutes to compile
)
def test_attention_implementations_agree(tiny_checkpoint, model, one, attention):
    other = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_checkpoint, attn_implementation=attention)
    with torch.no_grad():
        torch.testing.assert_close(other(**one).logits, model(**one).logits, atol=1e-4, rtol=1e-4)
    for part in (other.model.audio_tower, other.model.language_model, other.model.adapter):
        assert part.config._attn_implementation == attention


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_checkpoint, model, one, dtype):
    half = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_checkpoint, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    with torch.no_grad():
        difference = half(**one).logits.float() - model(**one).logits
    assert difference.abs().max() < 0.1 * model(**one).logits.std()
    assert len(answer_of(half, one)) == NEW_TOKENS or answer_of(half, one)[-1] in half.generation_config.eos_token_id


def test_device_map_auto(tiny_checkpoint, model, one):
    placed = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_checkpoint, device_map="auto")
    accelerator = torch.accelerator.current_accelerator()
    assert placed.device.type == ("cpu" if accelerator is None else accelerator.type)
    assert answer_of(placed, one) == answer_of(model, one)


def test_parts_on_two_devices(tiny_checkpoint, model, one, tmp_path):
    """A model that does not fit: the language model's layers are fetched from disk when they are needed."""
    device_map = {"model.audio_tower": "cpu", "model.adapter": "cpu", "lm_head": "cpu"}
    device_map |= {"model.language_model.embed_tokens": "cpu", "model.language_model.norm": "cpu"}
    device_map |= {"model.language_model.rotary_emb": "cpu"}
    device_map |= {"model.language_model.layers.0": "cpu", "model.language_model.layers.1": "disk"}
    split = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_checkpoint, device_map=device_map, offload_folder=tmp_path)
    assert split.model.language_model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert answer_of(split, one) == answer_of(model, one)


def test_quantised_to_eight_bits_with_bitsandbytes(tiny_checkpoint, model, one):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install .[quantization]")
    quantised = AutoModelForSpeechSeq2Seq.from_pretrained(
        tiny_checkpoint,
        quantization_config=BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_skip_modules=["model.audio_tower", "model.adapter", "lm_head"]
        ),
    )
    assert isinstance(quantised.model.language_model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear8bitLt)
    assert type(quantised.model.adapter.projection) is torch.nn.Linear
    with torch.no_grad():
        difference = quantised(**one).logits - model(**one).logits
    assert 0 < difference.abs().max() < 0.2 * model(**one).logits.std()
    assert answer_of(quantised, one)


def test_quantised_to_eight_bits_with_torchao(tiny_checkpoint, model, one):
    pytest.importorskip("torchao", reason="quantised loading needs torchao: pip install .[quantization]")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    quantised = AutoModelForSpeechSeq2Seq.from_pretrained(
        tiny_checkpoint, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    weight = quantised.model.language_model.layers[0].mlp.up_proj.weight
    assert "int8" in str(getattr(weight, "qdata", weight).dtype)
    with torch.no_grad():
        difference = quantised(**one).logits - model(**one).logits
    assert 0 < difference.abs().max() < 0.2 * model(**one).logits.std()
    assert answer_of(quantised, one)
