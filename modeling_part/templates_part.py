# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Chat templates, made so that they say the same on every day and to every caller.

A model must be asked the way it was trained. What a template takes from elsewhere (the clock, a switch of the caller)
is therefore written into the template itself, which is saved with the checkpoint.
"""

import re


# Put before a template that asks for the date: the day on which Llama 3's own template falls back without a clock.
FROZEN_CLOCK = """
{%- macro strftime_now(format) -%}
{%- set written = namespace(text=format) -%}
{%- for code, words in {
  "%A": "Friday", "%a": "Fri", "%B": "July", "%b": "Jul", "%d": "26", "%-d": "26", "%e": "26", "%j": "208", "%m": "07",
  "%-m": "7", "%Y": "2024", "%y": "24", "%F": "2024-07-26", "%D": "07/26/24", "%x": "07/26/24", "%H": "12", "%I": "12",
  "%M": "00", "%p": "PM", "%S": "00", "%T": "12:00:00", "%X": "12:00:00", "%R": "12:00", "%c": "Fri Jul 26 12:00:00 2024",
  "%Z": "", "%z": ""
}.items() -%}
{%- set written.text = written.text.replace(code, words) -%}
{%- endfor -%}
{%- if "%" in written.text -%}
{{- raise_exception("PART freezes the date in a chat template, and cannot write " ~ written.text) -}}
{%- endif -%}
{{- written.text -}}
{%- endmacro %}
"""

# Put before a template that can let the model think first: PART learns to answer at once.
WITHOUT_THINKING = """
{%- if enable_thinking is defined and enable_thinking -%}
{{- raise_exception("This model has learned to answer at once: leave out enable_thinking.") -}}
{%- endif -%}
{%- set enable_thinking = false %}
"""

# Put before a language model's own chat template, which knows text only: content given in parts becomes one text, with
# the placeholder where audio is. Audio alone asks for a transcript.
CHAT_OF_PARTS = """
{%- set chat = namespace(messages=[]) -%}
{%- if SYSTEM is not none and messages and messages[0].role != "system" -%}
  {%- set chat.messages = [{"role": "system", "content": SYSTEM}] -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.content is string or not message.content -%}
    {%- set chat.messages = chat.messages + [message] -%}
  {%- else -%}
    {%- set turn = namespace(texts=[], has_audio=false, has_text=false) -%}
    {%- for part in message.content -%}
      {%- if part.type == "audio" -%}
        {%- set turn.texts = turn.texts + [AUDIO] -%}
        {%- set turn.has_audio = true -%}
      {%- elif part.type == "text" -%}
        {%- set turn.texts = turn.texts + [part.text] -%}
        {%- set turn.has_text = true -%}
      {%- else -%}
        {{- raise_exception("PART takes content of type 'audio' and 'text', not '" ~ part.type ~ "'.") -}}
      {%- endif -%}
    {%- endfor -%}
    {%- if turn.has_audio and not turn.has_text -%}
      {%- set turn.texts = turn.texts + [INSTRUCTION] -%}
    {%- endif -%}
    {%- set chat.messages = chat.messages + [dict(message, content=turn.texts | join("\\n"))] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = chat.messages %}
"""

Template = str | dict[str, str] | None
DRAWN = re.compile(r"\|\s*random\b|\blipsum\s*\(")  # what Jinja draws anew each time


def freeze_clock(template: Template) -> Template:
    """A chat template (or several, by name) that writes one date for ever where it would write today's.

    Raises:
        ValueError: it draws what it writes at random.
    """
    if isinstance(template, dict):
        return {name: freeze_clock(one) for name, one in template.items()}
    if template is not None and (drawn := DRAWN.search(template)):
        raise ValueError(
            f"The language model's chat template draws what it writes at random ({drawn[0]!r}), so that no two prompts would "
            "be alike. Write one of its choices into the template."
        )
    if template is None or "strftime_now" not in template or "macro strftime_now" in template:
        return template
    return FROZEN_CLOCK.lstrip() + template


def without_thinking(template: Template) -> Template:
    """A chat template (or several, by name) that leaves thinking out, and refuses to be asked for it."""
    if isinstance(template, dict):
        return {name: without_thinking(one) for name, one in template.items()}
    if template is None or "enable_thinking" not in template or WITHOUT_THINKING.lstrip() in template:
        return template
    return WITHOUT_THINKING.lstrip() + template
