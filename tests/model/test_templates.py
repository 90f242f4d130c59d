"""One prompt: whatever a language model's chat template does, a row is asked alike on every day and by every caller.

The templates are short ones in our words that do what those of the families do.
"""

import datetime
import json
import re
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.templates_part import freeze_clock, without_thinking


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    # the date by a variable with a fallback, the system message apart
    "llama3": """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "?" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set said = "" %}{%- endif %}
{{- "<|im_start|>system\nCutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" + said + "<|im_end|>\n" }}
"""
    + TURNS
    + ANSWER,
    "granite": "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nToday\\'s Date: ' + strftime_now('%B %d, %Y') "
    "+ '.\nYou are Granite.<|im_end|>\n' }}{% endif %}" + TURNS + ANSWER,
    "smollm3": "{% macro head() %}Today Date: {{ strftime_now('%d %B %Y') }}{% endmacro %}"
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "<|im_start|>system\n{{ head() }}\nReasoning Mode: {{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n"
    + TURNS
    + ANSWER
    + "{% if add_generation_prompt and not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}",
    "qwen3": TURNS
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking "
    "is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}",
    "qwen2.5": "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{%- endif %}"
    + TURNS
    + ANSWER,
    "gemma2": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TURNS
    + ANSWER,
    # the system message becomes the beginning of the user's
    "gemma3": "{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\n\n' -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- endif -%}"
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + (first if loop.first else '') }}"
    "{%- if m.content is string -%}{{ m.content | trim }}{%- else -%}"
    "{%- for item in m.content -%}{{ item.text | trim }}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    + ANSWER,
    "ignores_system": "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    + ANSWER,
}


class Later(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 1, 2, 3, 4, 5)


def another_day():
    chat_template_utils._compile_jinja_template.cache_clear()
    return mock.patch.object(chat_template_utils, "datetime", Later)


def build(family: str, thinks: bool = False, **settings) -> PARTProcessor:
    tokenizer = tiny.tiny_tokenizer(extra_tokens=["<|audio|>"])
    tokenizer.chat_template = TEMPLATES[family] if thinks else without_thinking(TEMPLATES[family])
    return PARTProcessor(tiny.tiny_feature_extractor(), tokenizer, **settings)


CLIP = np.sin(np.arange(8_000) / 20).astype(np.float32)
ALLOWED = [
    (family, prompt)
    for family in TEMPLATES
    for prompt in (None, "", "Listen well.")
    if prompt is None or (family != "gemma2" and not (family == "ignores_system" and prompt))
]


@pytest.mark.parametrize(("family", "system_prompt"), ALLOWED)
def test_every_caller_asks_alike_on_every_day(family, system_prompt, tmp_path):
    processor = build(family, system_prompt=system_prompt)
    trained = processor(CLIP, source_lang="fr", text="un")
    prompt = trained["input_ids"][trained["labels"] == -100]
    text = processor.tokenizer.decode(prompt)
    assert "Transcribe the French speech." in text and text.rstrip().endswith(("assistant", "</think>"))
    assert (system_prompt or "") in text
    processor.save_pretrained(tmp_path)
    with another_day():
        loaded = PARTProcessor.from_pretrained(tmp_path)
        content = [{"type": "audio", "audio": CLIP}, {"type": "text", "text": "Transcribe the French speech."}]
        messages = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        asked = {
            "inference": loaded(CLIP, source_lang="fr")["input_ids"],
            "request": loaded.apply_transcription_request(CLIP, language="French")["input_ids"],
            "chat": loaded.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True
            ),
            "another processor of the parts": build(family, system_prompt=system_prompt)(CLIP, source_lang="fr")[
                "input_ids"
            ],
            # what a server does that knows the tokenizer and its template only
            "tokenizer": loaded(
                text=AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
                    [*messages, {"role": "user", "content": "<|audio|>\nTranscribe the French speech."}],
                    tokenize=False,
                    add_generation_prompt=True,
                ),
                audio=CLIP,
            )["input_ids"],
        }
    for caller, ids in asked.items():
        assert torch.equal(ids[0], prompt), (caller, loaded.tokenizer.decode(ids[0]), text)
    chat_template_utils._compile_jinja_template.cache_clear()


@pytest.mark.parametrize("family", ["llama3", "granite", "smollm3"])
def test_the_date_is_one_for_ever(family):
    processor = build(family)
    text = processor.tokenizer.decode(processor(CLIP)["input_ids"][0])
    written = re.search(r"Today(?:'s)? Date: (.*?)\.?\n", text)[1]
    assert written in ("26 Jul 2024", "July 26, 2024", "26 July 2024")


def test_a_template_given_later_is_frozen_too():
    processor = build("qwen2.5")
    processor.tokenizer.chat_template = TEMPLATES["granite"]
    prompt = processor(CLIP)["input_ids"]
    with another_day():
        assert torch.equal(processor(CLIP)["input_ids"], prompt)
    chat_template_utils._compile_jinja_template.cache_clear()


def test_the_processor_s_own_template_is_that_of_every_caller():
    processor = PARTProcessor(
        tiny.tiny_feature_extractor(),
        tiny.tiny_tokenizer(extra_tokens=["<|audio|>"]),
        chat_template=TEMPLATES["qwen2.5"],
    )
    chat = [{"role": "user", "content": [{"type": "audio", "audio": CLIP}]}]
    asked = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    assert torch.equal(processor(CLIP)["input_ids"], asked)
    assert "You are Qwen." in processor.tokenizer.decode(asked[0])


@pytest.mark.parametrize("family", ["qwen3", "smollm3"])
def test_thinking_is_off_and_cannot_be_asked_for(family):
    processor = build(family)
    assert processor.tokenizer.decode(processor(CLIP)["input_ids"][0]).rstrip().endswith("</think>")
    chat = [{"role": "user", "content": "hi"}]
    with pytest.raises(Exception, match="answer at once: leave out enable_thinking"):
        processor.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=True)
    off = processor.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=False)
    assert off == processor.apply_chat_template(chat, add_generation_prompt=True)


def test_a_checkpoint_keeps_the_thinking_that_it_was_trained_with(tmp_path):
    processor = build("qwen3", thinks=True)
    prompt = processor(CLIP)["input_ids"]
    assert "think" not in processor.tokenizer.decode(prompt[0])
    processor.save_pretrained(tmp_path)
    assert torch.equal(PARTProcessor.from_pretrained(tmp_path)(CLIP)["input_ids"], prompt)


def test_new_models_do_not_think(tmp_path):
    parts = tiny.tiny_parts(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(parts.language_model)
    tokenizer.chat_template = TEMPLATES["qwen3"]
    tokenizer.save_pretrained(parts.language_model)
    _, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(str(parts.audio_model), str(parts.language_model))
    assert processor.tokenizer.decode(processor(CLIP)["input_ids"][0]).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("system_prompt", ["", "Listen."])
def test_a_refused_system_prompt_is_named(system_prompt):
    processor = build("gemma2", system_prompt=system_prompt)
    with pytest.raises(
        ValueError, match=rf"System role not supported. `system_prompt` is '{system_prompt}'; leave it out"
    ):
        processor(CLIP)


def test_a_dropped_system_prompt_is_named():
    with pytest.raises(ValueError, match=r"drops the system prompt 'Listen\.': leave `system_prompt` out"):
        build("ignores_system", system_prompt="Listen.")(CLIP)


@pytest.mark.parametrize("template", ["{{ messages[0].nothing.at_all }}", "{% if %}"])
def test_a_template_that_cannot_be_rendered_is_named(template):
    processor = build("qwen2.5")
    processor.tokenizer.chat_template = template
    with pytest.raises(ValueError, match=r"chat template refuses the prompt: .* Fix the template"):
        processor(CLIP)


CODES = "A a B b d -d e j m -m Y y F D x H I M p S T X R c".split()


def test_the_frozen_date_is_a_day():
    day = datetime.datetime(2024, 7, 26, 12)
    for code in CODES:
        template = freeze_clock("{{ strftime_now('[%" + code + "]') }}")
        given, _ = chat_template_utils.render_jinja_template([[]], chat_template=template)
        assert given == [day.strftime(f"[%{code}]")], code
    with pytest.raises(Exception, match="cannot write %q"):
        chat_template_utils.render_jinja_template([[]], chat_template=freeze_clock("{{ strftime_now('%q') }}"))


def test_freezing_twice_changes_nothing():
    for template in (*TEMPLATES.values(), dict(TEMPLATES), None):
        for change in (freeze_clock, without_thinking):
            assert change(change(template)) == change(template)


@pytest.mark.parametrize("drawn", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_is_refused(drawn):
    tokenizer = tiny.tiny_tokenizer(extra_tokens=["<|audio|>"])
    tokenizer.chat_template = drawn + TURNS + ANSWER
    with pytest.raises(ValueError, match="chat template draws what it writes at random"):
        PARTProcessor(tiny.tiny_feature_extractor(), tokenizer)


def saved(folder, **settings):
    build("qwen2.5", **settings).save_pretrained(folder)
    return folder


def edit(folder, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("chat_template.jinja", "You are Qwen.", "You are Owen.", r"trained to answer '.*You are Qwen.*asked '.*You are Owen"),
        ("processor_config.json", '"system_prompt": null', '"system_prompt": "Listen."', r"after it was saved: system_prompt"),
        ("processor_config.json", "Transcribe the speech.", "Write it down.", r"after it was saved: instructions.asr_unnamed"),
        ("processor_config.json", '"variable_length": true', '"variable_length": false', r"after it was saved: variable_length"),
        ("processor_config.json", '"sampling_rate": 16000', '"sampling_rate": 8000', r"saved: feature_extractor.sampling_rate"),
    ],
)  # fmt: skip
def test_a_processor_that_was_changed_after_it_was_saved_is_refused(name, old, new, told, tmp_path):
    edit(saved(tmp_path), name, old, new)
    with pytest.raises(ValueError, match=told) as error:
        PARTProcessor.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value) and "save_pretrained" in str(error.value)


def test_a_chat_template_that_is_gone_is_noticed(tmp_path):
    (saved(tmp_path) / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"chat template or the tokenizer of .* was changed after it was saved"):
        PARTProcessor.from_pretrained(tmp_path)


def test_what_is_changed_on_purpose_is_kept(tmp_path):
    loaded = PARTProcessor.from_pretrained(saved(tmp_path), system_prompt="Listen.")
    loaded.variable_length = False
    loaded.save_pretrained(tmp_path)
    again = PARTProcessor.from_pretrained(tmp_path)
    assert again.system_prompt == "Listen." and not again.variable_length


def test_what_an_earlier_version_saved_is_loaded(tmp_path):
    path = saved(tmp_path) / "processor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings["saved_with"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert PARTProcessor.from_pretrained(tmp_path).system_prompt is None
