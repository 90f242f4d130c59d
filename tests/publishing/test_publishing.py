"""Stage records, what may leave the machine, and pushes to a Hub on loopback."""

import copy
import getpass
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from tiny import REPOSITORY

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.__main__ import main
from modeling_part.evaluation.scoring import annotate, score, write_predictions
from modeling_part.publishing.contents import prepare
from modeling_part.publishing.hub import PublishingError, finished_stages, preview, publish
from modeling_part.publishing.privacy import (
    SECRETS,
    check_nothing_private,
    secrets_in,
    without_local_paths,
    without_secrets,
)
from modeling_part.publishing.remote_code import CODE_FILES, add_remote_code
from modeling_part.recipes.files import CheckpointError
from modeling_part.recipes.stage_files import checksums
from modeling_part.recipes.stage_record import read_stage_json, write_stage_json


TOKEN = "hf_" + "a" * 34
REPO = "ada/part-tiny"
MEGABYTE = 2**20


def stage_info(stage: str = "encoder", parent: str | None = "runs/tiny/encoder_top", **changes) -> dict:
    """A record such as train_part.py writes, with figures that are easy to find again."""
    info = {
        "stage": stage,
        "parent": parent,
        "seed": 17,
        "base_models": {"audio_model": "openai/whisper-large-v3", "language_model": "Qwen/Qwen2.5-7B-Instruct"},
        "data": {
            "fingerprint": "5f1d3c",
            "rows": {"asr/en": 1234, "asr/zh-CN": 56, "s2tt/zh-CN-en": 78, "mt/en-fr": 90},
            "hours": {"asr/en": 2.3456789, "asr/zh-CN": 0.25, "s2tt/zh-CN-en": 0.125},
        },
        "hyperparameters": {"learning_rates": {"adapter": 1e-4, "encoder": 2.5e-5}, "epochs": 3, "bf16": True},
        "trainable_parameters": {"adapter": 7654321, "encoder": 635000000, "language_model": 0},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "metrics": {"eval_loss": 0.987654},
    }
    return info | changes


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path) -> Path:
    """A folder of a finished stage that the test may change."""
    folder = tmp_path / "run" / "encoder"
    shutil.copytree(tiny_checkpoint, folder)
    write_stage_json(folder, stage_info())
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback that this process takes for the real one, as user ada."""
    with LoopbackHub(users={TOKEN: "ada", "hf_" + "b" * 34: "bob"}) as server:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no-tokens"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


# ----------------------------------------------------------------------------------------------------------------------
# stage.json
# ----------------------------------------------------------------------------------------------------------------------


def test_stage_record_survives_writing_and_reading(tmp_path):
    path = write_stage_json(tmp_path, stage_info())
    assert read_stage_json(tmp_path) == stage_info()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # no temporary file is left
    assert path.stat().st_mode & 0o044  # readable to others, as files written plainly are


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "17"}, "'seed' is a str, but must be int"),
        ({"seed": True}, "'seed' is a bool"),
        ({"stage": "Encoder top"}, "cannot be a tag"),
        ({"secret": 1}, r"unknown keys \['secret'\]"),
        ({"data": {"rows": {}, "hours": {}}}, r"missing keys \['fingerprint'\]"),
    ],
)
def test_bad_stage_records_are_refused_and_not_written(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        write_stage_json(tmp_path, stage_info(**change))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_record_or_with_a_broken_one_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no stage\.json"):
        read_stage_json(tmp_path)
    (tmp_path / "stage.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"stage\.json is not JSON"):
        read_stage_json(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# What may leave the machine
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("training_args.bin", "a pickle"),
        ("pytorch_model.bin", "a pickle"),
        ("weights.pt", "a pickle"),
        ("optimizer.pt", "optimizer state"),
        ("adapter_model.safetensors", "merge them"),
        ("notes.txt", "not a part of a PART checkpoint"),
    ],
)
def test_other_files_are_refused_by_name(checkpoint, name, reason):
    (checkpoint / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} .*{reason}"):
        prepare(checkpoint, REPO)


def test_what_training_leaves_behind_is_not_published(checkpoint):
    (checkpoint / "checkpoint-10").mkdir()
    (checkpoint / "checkpoint-10" / "optimizer.pt").write_bytes(b"x")
    (checkpoint / "predictions.jsonl").write_text("{}\n")
    (checkpoint / "log_history.json").write_text("[]")
    (checkpoint / "dev" / "step-2").mkdir(parents=True)
    (checkpoint / "dev" / "step-2" / "predictions.jsonl").write_text("{}\n")
    save_file({"lora_A": torch.zeros(2)}, checkpoint / "lora.safetensors")
    (checkpoint / "lora").mkdir()
    save_file({"lora_A": torch.zeros(2)}, checkpoint / "lora" / "adapter_model.safetensors")
    assert set(prepare(checkpoint, REPO)) == {
        *CODE_FILES,
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "stage.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_card_has_a_curve_of_the_log_and_samples_where_they_are_asked_for(checkpoint):
    (checkpoint / "log_history.json").write_text('[{"step": 1, "asr_loss": 2.0}, {"step": 2, "asr_loss": 1.0}]')
    row = {
        "id": "1",
        "corpus": "c",
        "task": "asr",
        "source_lang": "en",
        "target_lang": "en",
        "reference": "said words",
    }
    prediction = {**row, "hypothesis": "written words", "ctc_hypothesis": "heard words"}
    write_predictions([prediction], checkpoint / "predictions.jsonl")
    report = score(annotate([prediction]), bootstrap_samples=10)
    assert report["disagreements"][0]["reference"] == "said words"
    (checkpoint / "report.json").write_text(json.dumps(report))
    contents = prepare(checkpoint, REPO)
    assert contents["loss.png"].startswith(b"\x89PNG") and b"](loss.png)" in contents["README.md"]
    assert not any(b"said words" in content for content in contents.values() if isinstance(content, bytes))
    assert b"| asr | en | said words | written words |" in prepare(checkpoint, REPO, samples=True)["README.md"]
    assert b"said words" in prepare(checkpoint, REPO, samples=True)["report.json"]


@pytest.mark.parametrize(
    "name",
    [
        "runs/Nov26_host/events.out.tfevents.17.host.0",
        "events.out.tfevents.17.host.0",
        "wandb/run-1/files/config.yaml",
        "trackio/project.db",
        "mlruns/0/meta.yaml",
        "notes of mine/a.txt",
        "checkpoint-best/model.safetensors",
        "LICENSE.d/x",
        ".DS_Store",
        "train.log",
        "emissions.csv",
    ],
)
def test_what_loggers_write_does_not_stand_in_the_way(checkpoint, name):
    expected = set(prepare(checkpoint, REPO))
    (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
    (checkpoint / name).write_bytes(b"\x00 anything")
    assert set(prepare(checkpoint, REPO)) == expected


@pytest.mark.parametrize(
    "name", ["NOTICE", "LICENSE", "vocab.txt", "chat_template.jinja", "model.safetensors", "config.json"]
)
@pytest.mark.parametrize("is_there", [True, False])
def test_links_out_of_the_folder_are_refused(checkpoint, tmp_path, name, is_there):
    outside = tmp_path / "outside"
    if is_there:
        outside.write_bytes(
            (checkpoint / name).read_bytes() if (checkpoint / name).exists() else b"secret of the owner"
        )
    before = outside.read_bytes() if is_there else None
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=rf"links out of the folder, {re.escape(name)} -> .*outside"):
        prepare(checkpoint, REPO)
    assert (outside.read_bytes() if outside.exists() else None) == before


def test_links_within_the_folder_are_published(checkpoint):
    (checkpoint / "LICENSE").write_text("mine")
    (checkpoint / "NOTICE").symlink_to("LICENSE")
    assert prepare(checkpoint, REPO)["NOTICE"] == b"mine"


def test_code_is_never_written_through_a_link(checkpoint, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("my own work")
    (checkpoint / "modeling_part.py").unlink(missing_ok=True)
    (checkpoint / "modeling_part.py").symlink_to(mine)
    with pytest.raises(CheckpointError, match=r"modeling_part\.py -> .*mine\.py"):
        add_remote_code(checkpoint)
    assert mine.read_text() == "my own work"
    (checkpoint / "modeling_part.py").unlink()
    (checkpoint / "other.py").write_text("my own work")
    (checkpoint / "modeling_part.py").symlink_to("other.py")
    add_remote_code(checkpoint)
    assert (checkpoint / "other.py").read_text() == "my own work" and not (
        checkpoint / "modeling_part.py"
    ).is_symlink()


def _not_a_number(weights: dict) -> None:
    weights["lm_head.weight"][0, 0] = float("nan")


def _rename_tensor(weights: dict) -> None:
    weights["model.adapter.unexpected"] = weights.pop("lm_head.weight")


def _cut_tensor(weights: dict) -> None:
    weights["lm_head.weight"] = weights["lm_head.weight"][:-1].contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_tensor, r"missing \['lm_head.weight'\], unexpected \['model.adapter.unexpected'\]"),
        (_cut_tensor, r"another shape \['lm_head.weight'\]"),
        (_not_a_number, r"'lm_head.weight' holds values that are not finite"),
    ],
)
def test_weights_of_another_model_are_refused(checkpoint, change, message):
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        prepare(checkpoint, REPO)


def test_weights_of_which_a_bit_has_flipped_are_refused(checkpoint):
    """Name, shape and finiteness are as they were: only the checksum tells."""
    path = checkpoint / "model.safetensors"
    write_stage_json(checkpoint, {**stage_info(), "files": checksums([path], checkpoint)})
    prepare(checkpoint, REPO)
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # of the mantissa of the last float
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged.* Put the file back, or train the stage"
    ):
        prepare(checkpoint, REPO)


def test_weights_must_be_safetensors(checkpoint):
    torch.save({}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        prepare(checkpoint, REPO)


def test_another_architecture_is_refused(tiny_parts):
    with pytest.raises(CheckpointError, match="has no processor_config"):
        add_remote_code(tiny_parts.language_model)


def test_a_secret_in_a_text_is_refused(checkpoint):
    template = checkpoint / "chat_template.jinja"
    template.write_text(template.read_text() + f"{{# {TOKEN} #}}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja holds a Hugging Face token") as refusal:
        prepare(checkpoint, REPO)
    assert TOKEN not in str(refusal.value)


SECRETS_OF_SERVICES = {
    "GitLab": "glpat-" + "a1B2" * 5,
    "Slack": "xoxb-123456789012-abcdefABCDEF",
    "Google": "AIza" + "b" * 35,
    "AWS key": "ASIA" + "A1" * 8,
    "AWS secret": "aws_secret_access_key=" + "a/B+" * 10,
    "npm": "npm_" + "a1" * 18,
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + "a" * 60,
    "Stripe": "sk_live_" + "a1" * 12,
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijklmnop",
    "private key": "-----BEGIN PGP PRIVATE KEY BLOCK-----",
    "Twilio": "SK" + "a1" * 16,  # by detect-secrets
    "SendGrid": "SG." + "a1" * 11 + "." + "b2" * 21 + "c",
    "Hugging Face": TOKEN,
    "Databricks": "dapi" + "a1" * 16,
    "Replicate": "r8_" + "aB1" * 12,
    "Docker": "dckr_pat_" + "a1B_" * 6,
    "Groq": "gsk_" + "aB1c" * 13,
    "Weights & Biases": "WANDB_API_KEY=" + "a1" * 20,
    "Comet": "comet_api_key: '" + "aB1c" * 6 + "'",
    "Kaggle": '{"username":"ada","key":"' + "a1" * 16 + '"}',
    "netrc": "machine api.wandb.ai login user password " + "a1" * 20,
    "Basic": "Authorization: Basic dXNlcjpwYXNzd29yZDEyMw==",
    "Bearer": '"Authorization": "Bearer ' + "a1B2" * 6,
    "DigitalOcean": "dop_v1_" + "a1" * 32,
}


# Of those that files write otherwise, such as quotes in JSON, and of each way of finding them, in every file.
WRITTEN_OTHERWISE = ("AWS secret", "Twilio", "Hugging Face", "Comet", "Kaggle", "Bearer")
FILES_WITH_SECRETS = [("NOTICE", service) for service in SECRETS_OF_SERVICES]
FILES_WITH_SECRETS += [
    (name, service)
    for name in ("stage.json", "vocab.txt", "tokenizer.json", "tokenizer.model")
    for service in WRITTEN_OTHERWISE
]


@pytest.mark.parametrize(("name", "service"), FILES_WITH_SECRETS)
def test_secrets_of_many_services_are_refused_in_every_text(checkpoint, service, name):
    secret = SECRETS_OF_SERVICES[service]
    path = checkpoint / name
    if name == "stage.json":
        write_stage_json(checkpoint, stage_info(hyperparameters={"note": f"use {secret} here"}))
    elif name == "tokenizer.json":
        tokenizer = json.loads(path.read_text())
        tokenizer["model"]["vocab"][f"use {secret} here"] = 7
        path.write_text(json.dumps(tokenizer))
    else:
        path.write_bytes(b"\xff\n" * (name == "tokenizer.model") + f"use {secret} here\n".encode())
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} holds an? ") as refusal:
        prepare(checkpoint, REPO)
    assert secret not in str(refusal.value)


SECRETS_BY_KIND = {
    "a Hugging Face token": [TOKEN, "api_org_" + "a1" * 10],
    "a GitHub token": [*(f"gh{kind}_" + "aB1" * 10 for kind in "pousr"), "github_pat_" + "11A_" * 8],
    "a GitLab token": [f"gl{kind}-" + "a1_" * 6 for kind in "pat dt ft soat rt cbt imt ptt agent oas".split()],
    "a Slack token": ["xoxb-123456789012-abcdef", "https://hooks.slack.com/services/T0/B0/x"],
    "a Google key": ["AIza" + "b-" * 15, "ya29." + "a_" * 10],
    "an AWS key": [f"{kind}{'A1' * 8}" for kind in ("AKIA", "ASIA", "ABIA", "ACCA", "A3T0")],
    "an AWS secret": ["AWS_SECRET_ACCESS_KEY: '" + "a/B+" * 10 + "'"],
    "an API key": ["sk-" + "aB1_" * 5, "sk-proj-" + "aB1-" * 5],
    "a Stripe key": ["rk_live_" + "a1" * 8, "sk_test_" + "a1" * 8],
    "an npm token": ["npm_" + "a1" * 15],
    "a PyPI token": ["pypi-" + "aB1-_" * 10],
    "a JSON web token": ["eyJhbGciOiJI.eyJzdWIiOiIx.abcdefgh"],
    "a private key": [f"-----BEGIN {kind}PRIVATE KEY-----" for kind in ("", "RSA ", "OPENSSH ", "EC ", "ENCRYPTED ")],
    "a token of a service": [
        "pplx-" + "aB" * 20,
        "xai-" + "aB1" * 20,
        "shpat_" + "0aF1" * 8,
        "lin_api_" + "aB1" * 10,
        "ntn_" + "aB" * 20,
        "doo_v1_" + "a1" * 30,
        "wandb_v1_" + "aB1" * 10,
    ],
    "a key with its name": [
        *(
            f"{name}={'a1' * 8}"
            for name in ("api_key", "APIKEY", "access_token", "client_secret", "passwd", "hf_token")
        ),
        'hub_token: \\"a1b2c3d4e5f6a7b8\\"',
    ],
    "a key of Kaggle": ['"key": "' + "0f" * 16 + '"'],
    "a header that signs in": ["authorization: bearer " + "a1B2" * 4],
    "a password in an address": ["postgres://ada:pw@db.corp/x", "https://ada:x1@git.corp/a.git"],
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_of_each_kind_are_found_and_blotted_out(kind):
    for secret in SECRETS_BY_KIND[kind]:
        assert kind in secrets_in(f"use {secret} here"), secret
        blotted = without_secrets(f"Sent {secret}, refused.")
        assert blotted.startswith("Sent ") and "***" in blotted and secret not in blotted


def test_what_only_begins_like_a_secret_is_none():
    for text in (
        "hf_transfer, hf_hub_download_of_what",
        "a task-oriented-dialogue-corpus-of-speech",
        "sk-learn and sk-short",
        "ghp_short, npm_config, pypi-server",
        "https://hub.org:8000/a@b and mailto:ada@corp.org",
        "-----BEGIN PUBLIC KEY-----",
        "api_key: your-own-key-of-the-service",
        "AKIAshort ASIA",
    ):
        assert secrets_in(text) == [] and without_secrets(text) == text


def test_paths_in_a_tokenizer_are_refused_unless_they_are_words(checkpoint):
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["/home/ada/models"] = vocabulary.pop("%")  # one word more would move the ids of added tokens
    path.write_text(json.dumps(tokenizer))
    prepare(checkpoint, REPO)
    tokenizer["post_processor"] = {"made_from": "see /home/ada/models/x"}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json holds the local path /home/ada/models/x"):
        prepare(checkpoint, REPO)


def test_a_text_that_is_not_utf8_is_named(checkpoint):
    (checkpoint / "NOTICE").write_bytes("für alle".encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"NOTICE is not UTF-8.*Save it as UTF-8"):
        prepare(checkpoint, REPO)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", r"config\.json is no object"),
        ("processor_config.json", "null", r"processor_config\.json is no object"),
        ("processor_config.json", '{"feature_extractor": "x"}', "'feature_extractor' is no object"),
        ("processor_config.json", '{"feature_extractor": [1]}', "'feature_extractor' is no object"),
        ("report.json", "null", r"report\.json is missing, but must be an object"),
        ("report.json", '{"groups": {"asr/en": null}}', r"report\.json: group 'asr/en' is missing"),
        ("model.safetensors.index.json", "{}", r"has no `weight_map`"),
        ("tokenizer.json", "{", r"tokenizer\.json is not JSON"),
        ("generation_config.json", "{", r"generation_config\.json is not JSON"),
    ],
)
def test_a_file_that_is_not_what_it_must_be_is_named(checkpoint, name, content, message):
    (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        prepare(checkpoint, REPO)


def test_a_config_of_nothing_is_named(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"audio_config": 7}))
    with pytest.raises(CheckpointError, match=r"config\.json describes no PART model"):
        prepare(checkpoint, REPO)


def test_local_paths_are_cut_out_of_every_text(checkpoint):
    home = str(Path.home())
    config = json.loads((checkpoint / "config.json").read_text())
    config["_name_or_path"] = f"{home}/models/x"
    config["audio_config"]["_name_or_path"] = f"{home}/models/whisper"
    (checkpoint / "config.json").write_text(json.dumps(config))
    paths = {"output_dir": str(checkpoint), "note": f"see {home}/notes", "other": "C:\\Users\\ada\\model"}
    write_stage_json(checkpoint, stage_info(hyperparameters=paths))
    contents = prepare(checkpoint, REPO)
    for name, content in contents.items():
        if isinstance(content, bytes):
            text = content.decode()
            assert "_name_or_path" not in text or name in CODE_FILES
            assert not re.search(r'"/[^"/]+/|\\Users', text), name
            assert f"{home}/" not in text and str(checkpoint.parent) not in text, name
    assert json.loads(contents["stage.json"])["hyperparameters"] == {
        "output_dir": "encoder",
        "note": "see notes",
        "other": "model",
    }
    kept = json.loads((checkpoint / "config.json").read_text())  # the folder itself gains the code only
    assert {name: kept[name] for name in config} == config


@given(
    st.lists(st.text("abc-_.", min_size=1, max_size=8).filter(lambda part: part.strip(".")), min_size=2, max_size=5)
)
def test_a_path_is_cut_to_its_last_part(parts):
    assert without_local_paths({"key": ["/" + "/".join(parts)]}, Path("x")) == {"key": [parts[-1]]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/mnt/My Models/whisper", "whisper"),
        ("/mnt/models (old)/x", "x"),
        ("trained on /mnt/corp/data.jsonl, twice", "trained on data.jsonl, twice"),
        ("file:///mnt/corp/x", "x"),
        ("see file:///mnt/corp/x y", "see x y"),
        (r"\\server\share\x", "x"),
        (r"from \\server\share\x and C:\Users\ada\y", "from x and y"),
        ("~/models/a b", "a b"),
        ("asr/fr and/or https://a.b/c/d /no/folder/here", "asr/fr and/or https://a.b/c/d /no/folder/here"),
        ("/think /no_think", "/think /no_think"),
        ("see /data2/corp/x.jsonl and /lustre01/corp/y", "see x.jsonl and y"),
        ("~ada/models/x", "x"),
        ("copied from ada@node7.corp:/scratch/x, once", "copied from x, once"),
        ("ssh://ada@node7/scratch/x", "x"),
        ("write to ada@example.org: she knows", "write to ada@example.org: she knows"),
        (
            "hub_token is needed; api_key: none; password: required_for_all",
            "hub_token is needed; api_key: none; password: required_for_all",
        ),
    ],
)
def test_paths_of_all_kinds_are_cut(text, expected):
    assert without_local_paths({"a": [text]}, Path("x")) == {"a": [expected]}


def test_a_prompt_is_not_changed_but_a_path_in_it_refused(checkpoint):
    config = json.loads((checkpoint / "processor_config.json").read_text())
    prompt = "Files lie in /home/ada/notes."
    assert without_local_paths({"system_prompt": prompt}, Path("x")) == {"system_prompt": prompt}
    (checkpoint / "processor_config.json").write_text(json.dumps(config | {"system_prompt": prompt}))
    with pytest.raises(CheckpointError, match=r"processor_config\.json holds the local path /home/ada/notes"):
        prepare(checkpoint, REPO)


@pytest.mark.parametrize(
    "path", [r"C:\Users\ada\models\whisper", "D:/corp/data/x.jsonl", "~/models/secret/whisper", r"Q:\data\x.wav"]
)
def test_paths_of_windows_and_of_homes_are_refused_where_nothing_is_cut(checkpoint, path):
    config = json.loads((checkpoint / "processor_config.json").read_text())
    harmless = "Q:\nWhat is said?\nA:\nNothing/else, 1/2/3, https://x.org/~ada/a/b and and/or/not"
    check_nothing_private("processor_config.json", json.dumps({"system_prompt": harmless}), checkpoint)
    check_nothing_private("NOTICE", harmless, checkpoint)
    (checkpoint / "processor_config.json").write_text(json.dumps(config | {"system_prompt": f"See {path}."}))
    with pytest.raises(CheckpointError, match=r"processor_config\.json holds the local path"):
        prepare(checkpoint, REPO)
    (checkpoint / "processor_config.json").write_text(json.dumps(config))
    (checkpoint / "NOTICE").write_text(f"Made of {path}.")
    with pytest.raises(CheckpointError, match="NOTICE holds the local path"):
        prepare(checkpoint, REPO)


def test_a_processor_that_asks_otherwise_than_it_was_trained_is_not_published(checkpoint):
    template = checkpoint / "chat_template.jinja"
    whole = template.read_text()
    template.write_text(whole + "Answer:")
    with pytest.raises(
        CheckpointError, match=r"is not published: The chat template .* was changed after it was saved"
    ):
        prepare(checkpoint, REPO)
    template.write_text(whole)
    processor = PARTProcessor.from_pretrained(checkpoint)
    processor.instructions["asr"] = "/mnt/corpus/asr"
    processor.save_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match=r"a local path in instructions\.asr, and the model was trained with it"):
        prepare(checkpoint, REPO)


@pytest.mark.parametrize("text", ["openai/whisper-base", "<|/think|>", "</s>", "/", "a / b", r"\p{L}+|\s", "1/2"])
def test_what_is_no_path_stays(text):
    assert without_local_paths(text, Path("x")) == text


@pytest.mark.parametrize("name", ["whisper", "Qwen2"])
def test_a_working_folder_named_like_a_model_takes_nothing_from_its_name(monkeypatch, name):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/", name))
    for text in ("openai/whisper-base", "Qwen/Qwen2.5-1.5B"):
        assert without_local_paths(text, Path("x")) == text
        check_nothing_private("README.md", text, Path("x"))
    assert without_local_paths(f"trained by /{name}/run.sh", Path("x")) == "trained by run.sh"
    with pytest.raises(CheckpointError, match=f"holds the local path /{name},"):
        check_nothing_private("README.md", f"data in /{name}/clips", Path("x"))


def test_a_word_in_place_of_a_token_is_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "1")
    check_nothing_private("config.json", '{"adapter_conv_stride": 1}', Path("x"))


# ----------------------------------------------------------------------------------------------------------------------
# Against a Hub
# ----------------------------------------------------------------------------------------------------------------------


def change_weights(folder: Path, amount: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] += amount
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_each_stage_is_a_commit_and_a_tag(hub, checkpoint):
    first = publish(checkpoint, REPO)
    weights = (checkpoint / "model.safetensors").read_bytes()
    change_weights(checkpoint, 1.0)
    write_stage_json(checkpoint, stage_info("joint", parent="encoder"))
    second = publish(checkpoint, REPO)

    repository = hub.repositories[REPO]
    assert repository.titles == ["initial commit", "Stage encoder", "Stage joint"]
    assert repository.tags == {"stage-encoder": first.commit, "stage-joint": second.commit}
    assert repository.branches["main"] == second.commit
    assert repository.commits[first.commit]["model.safetensors"].content == weights
    assert repository.commits[second.commit]["model.safetensors"].content != weights
    assert second.url == f"{hub.url}/{REPO}/tree/stage-joint"
    record = json.loads(repository.commits[second.commit]["stage.json"].content)
    assert (record["parent"], record["parent_revision"]) == ("encoder", first.commit)
    assert f"revision `{first.commit}`" in repository.commits[second.commit]["README.md"].content.decode()


def test_no_text_on_the_hub_names_this_machine_or_its_user(hub, checkpoint):
    shutil.copy(REPOSITORY / "model_cards" / "example_report.json", checkpoint / "report.json")
    write_stage_json(checkpoint, stage_info(parent=str(checkpoint.parent / "encoder_top")))
    published = publish(checkpoint, REPO)
    files = hub.repositories[REPO].commits[published.commit]
    for name, file in files.items():
        if not file.is_lfs:
            text = file.content.decode()
            assert str(Path.home()) + "/" not in text and f"/{getpass.getuser()}/" not in text, name
            assert str(checkpoint.parent) not in text and TOKEN not in text, name
            assert not re.search(r'"/(?:[\w.-]+/)+[\w.-]+"', text), name
    assert "configuration_part.py" in files and "README.md" in files and "report.json" in files


def test_publishing_again_sends_nothing(hub, checkpoint):
    published = publish(checkpoint, REPO)
    received, commits = hub.received, len(hub.repositories[REPO].commits)
    assert publish(checkpoint, REPO) == published
    assert len(hub.uploads) == 1 and len(hub.repositories[REPO].commits) == commits
    assert hub.received - received < 1000  # the question whether the repository is there


def test_a_stage_published_again_with_other_weights_moves_its_tag(hub, checkpoint):
    first = publish(checkpoint, REPO)
    change_weights(checkpoint, 1.0)
    second = publish(checkpoint, REPO)
    assert first.commit != second.commit
    assert hub.repositories[REPO].tags == {"stage-encoder": second.commit}


@pytest.fixture(scope="module")
def sharded(tiny_checkpoint, tmp_path_factory) -> Path:
    """A stage whose weights are several files of more than 10 MB."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    model = PARTForSpeechSeq2Seq.from_pretrained(folder)
    model.config.text_config.intermediate_size = 40_000
    large = PARTForSpeechSeq2Seq(model.config)
    (folder / "model.safetensors").unlink()
    large.save_pretrained(folder, max_shard_size="16MB")
    write_stage_json(folder, stage_info())
    return folder


def test_an_interrupted_push_continues(hub, sharded, monkeypatch):
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) >= 2 and sum(shard.stat().st_size > 10 * MEGABYTE for shard in shards) >= 2
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    hub.drop_uploads_after = 1
    with pytest.raises(PublishingError, match=r"connection to http://127\.0\.0\.1.* run the same command again"):
        publish(sharded, REPO)
    assert len(hub.uploads) == 1 and hub.repositories[REPO].tags == {}
    hub.drop_uploads_after = None
    published = publish(sharded, REPO)
    assert sorted(hub.uploads) == sorted(set(hub.uploads)) and len(hub.uploads) == len(shards)  # none was sent twice
    files = hub.repositories[REPO].commits[published.commit]
    assert all(files[shard.name].content == shard.read_bytes() for shard in shards)


def test_unneeded_shards_of_an_earlier_stage_are_deleted(hub, sharded, checkpoint):
    publish(sharded, REPO)
    repository = hub.repositories[REPO]
    repository.commits[repository.branches["main"]]["figure.png"] = repository.commits[repository.branches["main"]][
        ".gitattributes"
    ]
    write_stage_json(checkpoint, stage_info("joint"))
    files = repository.commits[publish(checkpoint, REPO).commit]
    assert [name for name in files if "safetensors" in name] == ["model.safetensors"]
    assert "figure.png" in files  # not a checkpoint's: left alone


def test_a_wrong_token_or_none_is_one_clear_error(hub, checkpoint, monkeypatch):
    with pytest.raises(PublishingError, match="does not accept the token"):
        publish(checkpoint, REPO, token="hf_" + "w" * 34)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishingError, match="hf auth login"):
        publish(checkpoint, REPO)
    assert hub.repositories == {}


def test_the_repository_of_somebody_else_is_not_touched(hub, checkpoint):
    publish(checkpoint, "bob/part", token="hf_" + "b" * 34)
    before = copy.copy(hub.repositories["bob/part"].branches)
    change_weights(checkpoint, 1.0)
    for repo_id in ("bob/part", "bob/new"):
        with pytest.raises(PublishingError, match=f"may not write to {repo_id}.*Use a repository under your own name"):
            publish(checkpoint, repo_id)
    assert hub.repositories["bob/part"].branches == before and len(hub.uploads) == 1


def test_another_model_is_not_overwritten(hub, checkpoint):
    api = HfApi()
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=REPO)
    with pytest.raises(PublishingError, match="holds another model"):
        publish(checkpoint, REPO)


OWN = {"LICENSE": b"mine", "NOTICE": b"mine", "merges.txt": b"mine", "notes.md": b"mine"}


def upload(api: HfApi, **files: bytes) -> None:
    api.create_repo(REPO, exist_ok=True)
    for name, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO)


def on_main(hub) -> dict[str, bytes]:
    repository = hub.repositories[REPO]
    return {name: file.content for name, file in repository.commits[repository.branches["main"]].items()}


def test_what_the_owner_put_there_is_left_alone(hub, checkpoint):
    upload(HfApi(), **OWN)
    publish(checkpoint, REPO)
    change_weights(checkpoint, 1.0)
    write_stage_json(checkpoint, stage_info("joint"))
    publish(checkpoint, REPO)
    assert {name: on_main(hub)[name] for name in OWN} == OWN


def test_what_publishing_wrote_is_deleted_when_a_later_stage_lacks_it(hub, checkpoint):
    (checkpoint / "vocab.txt").write_text("a\n")
    (checkpoint / "LICENSE").write_text("mine\n")
    publish(checkpoint, REPO)
    (checkpoint / "vocab.txt").unlink()
    (checkpoint / "LICENSE").unlink()
    change_weights(checkpoint, 1.0)
    publish(checkpoint, REPO)
    assert "vocab.txt" not in on_main(hub) and on_main(hub)["LICENSE"] == b"mine\n"


def test_a_card_written_by_hand_is_not_lost(hub, checkpoint):
    upload(HfApi(), **{"README.md": b"# My own card"})
    with pytest.raises(
        PublishingError, match=r"README\.md of ada/part-tiny was written or edited by hand.*--overwrite_card"
    ):
        publish(checkpoint, REPO)
    assert on_main(hub)["README.md"] == b"# My own card" and "config.json" not in on_main(hub)
    publish(checkpoint, REPO, overwrite_card=True)
    assert b"after the stage **encoder**" in on_main(hub)["README.md"]


def test_a_card_edited_on_the_hub_is_not_lost(hub, checkpoint):
    first = publish(checkpoint, REPO)
    edited = on_main(hub)["README.md"] + b"\nI tried it on my phone.\n"
    upload(HfApi(), **{"README.md": edited})
    assert publish(checkpoint, REPO) == first and on_main(hub)["README.md"] == edited  # nothing to send
    change_weights(checkpoint, 1.0)
    with pytest.raises(PublishingError, match="edited by hand"):
        publish(checkpoint, REPO)
    assert on_main(hub)["README.md"] == edited
    publish(checkpoint, REPO, overwrite_card=True)
    assert on_main(hub)["README.md"] != edited


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "LICENSE"])
def test_a_file_changed_on_the_hub_is_not_overwritten(hub, checkpoint, name):
    (checkpoint / "LICENSE").write_text("mine\n")
    publish(checkpoint, REPO)
    upload(HfApi(), **{name: b"changed there"})
    change_weights(checkpoint, 1.0)
    with pytest.raises(PublishingError, match=rf"PART did not write, or that were changed there: {re.escape(name)}\."):
        publish(checkpoint, REPO, overwrite_card=True)
    assert on_main(hub)[name] == b"changed there"


def test_the_repository_of_another_model_with_a_stage_json_is_not_overwritten(hub, checkpoint):
    upload(HfApi(), **{"config.json": b"{}", "stage.json": b"{}"})
    with pytest.raises(PublishingError, match=r"PART did not write.*config\.json, stage\.json"):
        publish(checkpoint, REPO)


def test_a_repository_of_an_earlier_version_goes_on(hub, checkpoint):
    publish(checkpoint, REPO)
    repository = hub.repositories[REPO]
    for files in repository.commits.values():
        files.pop("published_files.json", None)
    change_weights(checkpoint, 1.0)
    publish(checkpoint, REPO)
    upload(HfApi(), **{"README.md": b"edited"})
    repository.commits[repository.branches["main"]].pop("published_files.json")
    change_weights(checkpoint, 1.0)
    with pytest.raises(PublishingError, match="edited by hand"):
        publish(checkpoint, REPO)


def test_a_record_that_was_changed_there_is_no_licence_to_overwrite(hub, checkpoint):
    publish(checkpoint, REPO)
    upload(HfApi(), **{"published_files.json": b"[1]", "README.md": b"edited"})
    change_weights(checkpoint, 1.0)
    with pytest.raises(PublishingError, match="edited by hand"):
        publish(checkpoint, REPO)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "The token is empty"),
        (" \n", "The token is empty"),
        (TOKEN + "é", "not one word of ASCII"),
        (TOKEN[:10] + "\n" + TOKEN[10:], "not one word of ASCII"),
        (TOKEN[:10] + " " + TOKEN[10:], "not one word of ASCII"),
        (17, "The token is a int"),
    ],
)
def test_a_token_that_cannot_be_one_is_refused_and_not_printed(hub, checkpoint, token, message):
    with pytest.raises(PublishingError, match=message) as refusal:
        publish(checkpoint, REPO, token=token)
    assert TOKEN[:12] not in str(refusal.value) and "aaaa" not in str(refusal.value)
    assert hub.repositories == {}


@pytest.mark.parametrize("token", ["hf_" + "é" * 30, "hf_aaaa\nInjected: aaaa", "hf_aaaa aaaa\x07"])
def test_an_odd_token_of_the_environment_is_one_error_and_not_printed(hub, checkpoint, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishingError, match=r"token") as refusal:
        publish(checkpoint, REPO)
    assert "aaaa" not in str(refusal.value) and "é" not in str(refusal.value)
    assert "Check the network" not in str(refusal.value) and hub.repositories == {}


@pytest.mark.parametrize("content", [b"\xff\xfeh\0f\0_\0", None])
def test_a_file_of_the_token_that_cannot_be_read_is_named(hub, checkpoint, monkeypatch, tmp_path, content):
    path = tmp_path / "token"
    path.mkdir() if content is None else path.write_bytes(content)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(path))
    for call in (publish, preview):
        with pytest.raises(CheckpointError, match=rf"{path} cannot be read .*Run `hf auth login` again"):
            call(checkpoint, REPO)
    assert hub.received == 0


def test_white_space_around_a_token_is_nothing(hub, checkpoint):
    assert publish(checkpoint, REPO, token=f" {TOKEN}\n").tag == "stage-encoder"


@pytest.mark.parametrize("name", ["part", "ada/", "ada/a b", "ada/part\n# x", "", None, "a/b/c"])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_sent(hub, checkpoint, name):
    for call in (publish, preview):
        with pytest.raises(PublishingError, match=r"is no name of a repository.*Give USER/NAME"):
            call(checkpoint, name)
    assert hub.received == 0


def test_private_is_kept(hub, checkpoint):
    publish(checkpoint, REPO, private=True)
    assert hub.repositories[REPO].private
    publish(checkpoint, "ada/open")
    with pytest.raises(PublishingError, match="already there and public"):
        publish(checkpoint, "ada/open", private=True)


def test_no_network_is_one_clear_error(hub, checkpoint, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9"
    )  # the discard port: nobody answers
    with pytest.raises(PublishingError, match=r"connection to http://127\.0\.0\.1:9 failed.*Check the network"):
        publish(checkpoint, REPO)


def test_trouble_of_the_network_in_hf_xet_is_explained_too(hub, checkpoint, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("Network error: dns error")

    monkeypatch.setattr(HfApi, "create_commit", fail)
    with pytest.raises(PublishingError, match=r"failed \(ConnectionError: Network error: dns error\).*it continues"):
        publish(checkpoint, REPO)


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(checkpoint) -> Path:
    """A run folder with two stages; by name alone the second would come first."""
    run = checkpoint.parent
    shutil.copytree(checkpoint, run / "adapter")
    write_stage_json(run / "adapter", stage_info("adapter", parent="encoder"))
    write_stage_json(checkpoint, stage_info("encoder", parent=None))
    return run


def test_a_run_gives_its_stages_parents_first(run):
    assert [folder.name for folder in finished_stages(run)] == ["encoder", "adapter"]
    assert [folder.name for folder in finished_stages(run, ["adapter"])] == ["adapter"]
    assert finished_stages(run / "encoder") == [run / "encoder"]
    with pytest.raises(CheckpointError, match=r"holds the finished stages \['adapter', 'encoder'\], not \['joint'\]"):
        finished_stages(run, ["joint"])
    write_stage_json(run / "encoder", stage_info("encoder", parent="adapter"))
    with pytest.raises(CheckpointError, match="each other's parents"):
        finished_stages(run)


def test_two_folders_of_one_stage_are_named(run):
    shutil.copytree(run / "encoder", run / "encoder-copy")
    with pytest.raises(CheckpointError, match=r"encoder and .*encoder-copy are both stage 'encoder'"):
        finished_stages(run)
    assert finished_stages(run / "encoder-copy") == [run / "encoder-copy"]


def test_a_preview_prints_the_card_and_sends_nothing(hub, run, capsys):
    main(["publish", str(run), "--repo_id", REPO, "--stage", "adapter", "--preview", "--license", "mit"])
    printed = capsys.readouterr().out
    assert "license: mit" in printed and "after the stage **adapter**" in printed
    assert "README.md" in printed.splitlines()[0]
    assert hub.received == 0 and hub.repositories == {}


def test_the_command_publishes_a_run(hub, run, tmp_path):
    command = [sys.executable, "-m", "modeling_part.publishing", str(run), "--repo_id", REPO, "--private"]
    environment = hub.environment(tmp_path / "home", TOKEN) | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{hub.url}/{REPO}/tree/stage-{stage}" for stage in ("encoder", "adapter")]
    assert hub.repositories[REPO].private and set(hub.repositories[REPO].tags) == {"stage-encoder", "stage-adapter"}


def test_the_command_ends_with_one_line_of_error(hub, run, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "w" * 34)
    with pytest.raises(SystemExit) as stopped:
        main(["publish", str(run), "--repo_id", REPO])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("part publish: The Hub does not accept the token")


def test_a_preview_leaves_the_folder_as_it_was(checkpoint):
    def state() -> dict:
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    assert "modeling_part.py" not in before
    assert "modeling_part.py" in preview(checkpoint, "user/name")
    assert state() == before
