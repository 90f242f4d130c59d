"""Each class's own processor around a tokenizer that is built in code, and batches as its training would make them.

Tokenizers and chat templates of the checkpoints are on the Hub: the tokenizer here is a small one, the prompts are
written as the checkpoints' templates write them. Features are each processor's own work, padding included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# From the package itself, where what a class needs and lacks is an ImportError when it is made.
from transformers import (
    FunAsrNanoFeatureExtractor,
    FunAsrNanoProcessor,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechProcessor,
    MistralCommonBackend,
    PreTrainedTokenizerFast,
    Qwen2AudioProcessor,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRProcessor,
    WhisperFeatureExtractor,
)
from transformers.utils import requires_backends

from modeling_part import PARTProcessor


MEL_BINS, SAMPLING_RATE = 80, 16_000
INSTRUCTIONS = {"asr": "Transcribe the English speech into text.", "s2tt": "Translate the English speech into German."}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prompt_tokenizer(special_tokens: Sequence[str] = (), **named_tokens: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows the words of the instructions, so that prompts are as long as real ones.

    Args:
        special_tokens: a class's placeholders.
        named_tokens: those that its processor asks the tokenizer for by name, such as `audio_token`.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special_tokens, *named_tokens.values()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = "user assistant system Transcribe the English speech into text. Audio: Translate German USER: ASSISTANT:"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator([words] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named_tokens,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


# --------------------------------------------------------------------------------------------------------------------
# Processors; one that cannot be made here says so by its ImportError or FileNotFoundError
# --------------------------------------------------------------------------------------------------------------------


def qwen2_audio():
    tokenizer = prompt_tokenizer(("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"))
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=MEL_BINS), tokenizer)


def qwen3_asr():
    tokenizer = prompt_tokenizer(
        ("<asr_text>",),
        audio_token="<|audio_pad|>",
        audio_bos_token="<|audio_start|>",
        audio_eos_token="<|audio_end|>",
    )
    return Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(feature_size=MEL_BINS), tokenizer)


def fun_asr_nano():
    tokenizer = prompt_tokenizer(("<|object_ref_start|>",))
    return FunAsrNanoProcessor(FunAsrNanoFeatureExtractor(feature_size=MEL_BINS), tokenizer)


def granite_speech():
    tokenizer = prompt_tokenizer(("<|audio|>",))
    return GraniteSpeechProcessor(GraniteSpeechFeatureExtractor(n_mels=MEL_BINS), tokenizer)


def voxtral():
    """Its processor takes the tokenizers of mistral-common only, and those read a file of the checkpoint's."""
    requires_backends(MistralCommonBackend, ["mistral-common"])
    raise FileNotFoundError("VoxtralProcessor needs the tekken.json of a checkpoint, which is on the Hub.")


def part_processor(convolutions: Sequence, feature_extractor: Callable) -> PARTProcessor:
    return PARTProcessor(
        feature_extractor(feature_size=MEL_BINS),
        prompt_tokenizer(("<|audio|>",)),
        audio_token_convolutions=[list(one) for one in convolutions],
        system_prompt="",
    )


@dataclass(frozen=True)
class Asking:
    """
    How a class of transformers is asked.

    Attributes:
        processor: makes it.
        prompt: what comes before the answer; `{instruction}` is the task's.
        options: of the processor's call, beyond text and audio.
    """

    processor: Callable
    prompt: str
    options: dict = field(default_factory=dict)


ASKING = {
    "fun_asr_nano": Asking(
        fun_asr_nano,
        "<|im_start|>user\n{instruction}<|object_ref_start|><|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3_asr": Asking(
        qwen3_asr,
        "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|>"
        "<|im_end|>\n<|im_start|>assistant\nlanguage English<asr_text>",
    ),
    "granite_speech": Asking(granite_speech, "USER: <|audio|>{instruction}\n ASSISTANT:"),
    "qwen2_audio": Asking(
        qwen2_audio,
        "<|im_start|>user\nAudio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{instruction}<|im_end|>\n"
        "<|im_start|>assistant\n",
        {"sampling_rate": SAMPLING_RATE},
    ),
    "voxtral": Asking(voxtral, ""),
}


class AnswerCollator:
    """
    Rows with `audio` `(samples,)`, `instruction` and `text` -> a batch of `processor`'s, with labels on the answers.

    Padding of audio and text is on the side and to the length that the processor chooses.
    """

    def __init__(self, processor, asking: Asking):
        self.processor = processor
        self.asking = asking

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        answers = [row["text"] + tokenizer.eos_token for row in rows]
        prompts = [self.asking.prompt.format(instruction=row["instruction"]) for row in rows]
        batch = self.processor(
            text=[prompt + answer for prompt, answer in zip(prompts, answers, strict=True)],
            audio=[row["audio"] for row in rows],
            padding=True,
            return_tensors="pt",
            **self.asking.options,
        )
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        for number, answer in enumerate(answers):
            ids = torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"])
            last = batch["attention_mask"][number].nonzero()[-len(ids) :, 0]
            if not torch.equal(batch["input_ids"][number, last], ids):
                raise RuntimeError(f"The row does not end with its answer {answer!r}.")
            batch["labels"][number, last] = ids
        return {name: batch[name] for name in batch if isinstance(batch[name], torch.Tensor)}
