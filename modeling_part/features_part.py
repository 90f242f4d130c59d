# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The half of PART's processor that hears: audio -> features, and how many audio tokens they become."""

from functools import cached_property

import numpy as np
import torch
from transformers import ProcessorMixin, WhisperFeatureExtractor

from .audio_part import load_audio
from .configuration_part import convolved_length


# One analysis window of Whisper, Kaldi's filter banks and wav2vec2: less gives no feature step.
MINIMUM_SECONDS = 0.025


class FeatureProcessor(ProcessorMixin):
    """Wraps the feature extractor of the speech encoder; [`PARTProcessor`] sets the attributes that it uses."""

    feature_extractor: object
    audio_token_convolutions: list[list[int]]
    variable_length: bool

    @property
    def sampling_rate(self) -> int:
        """Rate that the encoder expects, Hz."""
        return self.feature_extractor.sampling_rate

    @property
    def encoder_window(self) -> int | None:
        """Samples that the encoder hears at most (Whisper: 30 s); None where its feature extractor has no such window."""
        return getattr(self.feature_extractor, "n_samples", None)

    @cached_property
    def feature_rate(self) -> float:
        """Feature steps per second (Whisper: 100), measured on silence: of a full window, or of six seconds more."""
        rate, window = self.sampling_rate, self.encoder_window
        if window is not None:
            return self._steps_of_silence(window) * rate / window
        # A difference: the first and the last analysis window cost Kaldi's filter banks steps, whatever the length.
        return (self._steps_of_silence(12 * rate) - self._steps_of_silence(6 * rate)) / 6

    @cached_property
    def stacked_frames(self) -> int:
        """How many frames of mel bins one feature step holds, one after the other: SAN-M 7, w2v-BERT 2, most others 1."""
        shape, extractor = self.silence().shape, self.feature_extractor
        bins = getattr(extractor, "num_mel_bins", None) or extractor.feature_size
        return 1 if len(shape) != 2 else shape[1 - self.feature_time_axis % 2] // bins

    def _steps_of_silence(self, samples: int) -> int:
        return self.extract_features(np.zeros(samples, dtype=np.float32)).shape[self.feature_time_axis]

    @property
    def feature_time_axis(self) -> int:
        """Axis of one clip's features that runs over time: Whisper's are `(mel, T)`, others `(T, mel)` or `(T,)`."""
        return -1 if isinstance(self.feature_extractor, WhisperFeatureExtractor) else 0

    def num_audio_tokens(self, feature_length: int) -> int:
        """Audio tokens (placeholders) of a clip with so many feature steps."""
        return convolved_length(feature_length, self.audio_token_convolutions)

    def extract_features(self, audio, sampling_rate: int | None = None) -> np.ndarray:
        """Features of one clip, `(mel, T)` for Whisper, `(T, mel)` or `(T,)` for others, unpadded.

        Each clip is extracted alone: its features do not depend on what it is batched with.
        """
        waveform = self.waveform(audio, sampling_rate)
        window = self.encoder_window
        if window is not None and len(waveform) > window:
            raise ValueError(
                f"Audio of {len(waveform) / self.sampling_rate:.1f} s is longer than the encoder's window of "
                f"{window / self.sampling_rate:.0f} s. Cut it into pieces (PARTPipeline does) or filter it by "
                "`max_duration` in training."
            )
        options = {"padding": "longest", "return_attention_mask": True}
        if isinstance(self.feature_extractor, WhisperFeatureExtractor) and not self.variable_length:
            options["padding"] = "max_length"
        outputs = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="np", **options)
        features = outputs["input_features" if "input_features" in outputs else "input_values"][0]
        mask = outputs.get("input_features_mask", outputs.get("attention_mask"))
        if mask is not None and self.variable_length:  # some extractors pad to a multiple of their stride
            features = np.take(features, np.arange(int(mask[0].sum())), axis=self.feature_time_axis)
        if self.num_audio_tokens(features.shape[self.feature_time_axis]) < 1:
            raise ValueError(
                f"Audio of {len(waveform)} samples at {self.sampling_rate} Hz is too short for one audio token. "
                "Remove it or raise `min_duration`."
            )
        return features.astype(np.float32)

    def silence(self) -> np.ndarray:
        """Features of a second of nothing: in training they stand in for audio that cannot be decoded."""
        return self.extract_features(np.zeros(self.sampling_rate, dtype=np.float32))

    def waveform(self, audio, sampling_rate: int | None) -> np.ndarray:
        """`(samples,)` float32 at the encoder's rate from a file, bytes, an array or a tensor; checked."""
        waveform = load_audio(audio, self.sampling_rate, array_rate=sampling_rate)
        if len(waveform) < MINIMUM_SECONDS * self.sampling_rate:
            raise ValueError(
                f"Audio of {len(waveform)} samples at {self.sampling_rate} Hz is shorter than {MINIMUM_SECONDS} s, the "
                "analysis window of the encoders. Remove the clip or raise `min_duration`."
            )
        return waveform

    def pad_features(self, features: list[np.ndarray], multiple: int | None = None) -> dict[str, torch.Tensor]:
        """Clips' features -> zero-padded `input_features` and `input_features_mask` `(B, T)`."""
        axis = self.feature_time_axis
        lengths = torch.tensor([clip.shape[axis] for clip in features])
        longest = int(lengths.max())
        if multiple:
            window = getattr(self.feature_extractor, "nb_max_frames", longest + multiple)
            longest = max(longest, min(-(-longest // multiple) * multiple, window))
        padded = []
        for clip in features:
            widths = [(0, 0)] * clip.ndim
            widths[axis] = (0, longest - clip.shape[axis])
            padded.append(np.pad(clip, widths))
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return {"input_features": torch.from_numpy(np.stack(padded)), "input_features_mask": mask}
