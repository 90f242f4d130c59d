"""What a person reads after a mistake: the whole of stderr, one message with the right words, exit status 2."""

import errno
import json
import logging
import re
import shutil
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import tiny_training
import torch
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

import train_part
from modeling_part.recipes.arguments import ModelArguments
from modeling_part.recipes.user_errors import mistakes_in_one_message, take_debug
from modeling_part.training import launches, sources, trackers
from modeling_part.training.checkpoints import write_checkpoint_record


@pytest.fixture
def fails(tmp_path, tiny_parts, tiny_corpus, capsys, monkeypatch):
    """Starts a run with a recipe's lines added and options, which must fail; gives what stands on stderr."""
    recipe = tiny_training.write_recipe(tmp_path, tiny_parts, tiny_corpus)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [logging.NullHandler()])  # the progress is not looked at

    def start(lines: str = "", *options: str) -> str:
        mine = tmp_path / "mine.yaml"
        mine.write_text(f"base: {recipe}\n{lines}", encoding="utf-8")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train_part.launch([str(mine), *options])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("train_part.py: ") and error.count("\n") == 1 and "Traceback" not in error
        return error.removeprefix("train_part.py: ").replace(str(tmp_path), ".").strip()

    return start


class TestRecipe:
    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("seed: 1\nmax_row: 3\n", "./mine.yaml, line 3: Unknown key 'max_row'. Did you mean 'max_rows'?"),
            ("\nseed: -3\n", "./mine.yaml, line 3: `seed` is -3; it must be at least 0."),
            (
                "stages:\n  joint:\n    max_steps: 0\n",
                "./mine.yaml, line 4: Stage 'joint': `max_steps` is 0; it must be",
            ),
            (
                "stages:\n  joint:\n    gate: alwys\n",
                "./mine.yaml, line 4: Stage 'joint': Unknown gate 'alwys'. Did you",
            ),
            ("stages:\n  jiont: {max_steps: 2}\n", "./mine.yaml, line 3: `stages`: Unknown stage to change 'jiont'."),
            ("learning_rate: 1.0e-3\n", "./mine.yaml, line 2: `learning_rate` is 0.001, which would have no effect"),
            (
                "adapter: {adapter_hidden_sise: 3}\n",
                "./mine.yaml, line 2: `adapter`: Unknown field 'adapter_hidden_sise'",
            ),
            ("seed: [1\n", "./mine.yaml is not YAML: while parsing a flow sequence"),
        ],
    )
    def test_file_and_line_are_named(self, fails, lines, message):
        assert fails(lines).startswith(message)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--seed", "x"], "--seed: `seed` is 'x'; it must be"),
            (
                ["--stages.joint.max_steps", "x"],
                "--stages.joint.max_steps: Stage 'joint': `max_steps` is 'x'; it must be",
            ),
            (["--stages.joint.max_stps=3"], "--stages.joint.max_stps: Stage 'joint': Unknown field 'max_stps'."),
            (["--stages.jiont.max_steps", "3"], "`stages`: Unknown stage to change 'jiont'. Did you mean 'joint'?"),
            (["--stages.joint"], "'--stages.joint': Write a stage, a field and a value"),
            (["--stages.joint.gate.asr", "1"], "--stages.joint.gate.asr: `gate` of a stage has no such setting."),
        ],
    )
    def test_the_option_is_named(self, fails, options, message):
        assert fails("", *options).startswith(message)

    def test_no_such_recipe(self, capsys):
        with pytest.raises(SystemExit):
            train_part.launch(["prat"])
        assert capsys.readouterr().err.startswith(
            "train_part.py: There is no recipe 'prat': not a file, and the shipped"
        )


def test_data_that_is_not_there(fails):
    lines = "train_data:\n  - reader: manifest\n    path: nowhere/train.jsonl\n"
    assert fails(lines).startswith("./mine.yaml, line 3: manifest: nowhere/train.jsonl does not exist;")


def test_a_setting_of_a_corpus(fails):
    lines = "\neval_data:\n  - {reader: manifest, path: dev.jsonl}\n  - {reader: manifets, path: dev.jsonl}\n"
    assert fails(lines.replace("dev.jsonl", __file__)).startswith("./mine.yaml, line 5: Unknown reader 'manifets'.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "`report_to` names 'tensorbord', which is none of azure_ml, "),
        ("tensorboard", "`report_to` names 'tensorboard', which is not installed"),
        ("[trackio, wandb]", "`report_to` names 'wandb', which is not installed"),
    ],
)
def test_a_tracker_that_is_not_there_is_told_before_data_are_read(fails, name, message, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["trackio"])
    monkeypatch.setattr(train_part, "load_rows", None)
    error = fails(f"report_to: {name}\n")
    assert error.startswith(message)
    assert any(
        fix in error for fix in ("Did you mean 'tensorboard'?", "'modeling-part[tensorboard]'", "install wandb")
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("optim_args: momentum=0.9", "`optim` is 'adamw_torch.*'momentum=0.9' would have no effect on it"),
        ("optim: sgd\noptim_args: 'momentum=0.9, fast=1'", "`optim` is 'sgd'.*'fast=1' would have no effect on it"),
        ("lr_scheduler_type: constant\nlr_scheduler_kwargs: {num_cycles: 2}", "`lr_scheduler_kwargs` is .* no effect"),
        ("eval_on_start: true\neval_data: none", "`eval_strategy` and `eval_on_start` need `eval_data`"),
        ("push_to_hub: true\nhub_model_id: mine", "'mine' is no name of a repository"),
        ("push_to_hub: true\nhub_model_id: my/own\nhub_token: 'a b'", "The token is not one word"),
    ],
)
def test_what_cannot_be_or_would_do_nothing_is_told_before_data_are_read(fails, lines, message, monkeypatch):
    monkeypatch.setattr(train_part, "load_rows", None)
    assert re.search(message, fails(f"{lines}\n"))


def test_what_cannot_be_sent_is_told_before_data_are_read(fails, monkeypatch):
    monkeypatch.setattr(train_part, "load_rows", None)
    monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", True)
    assert "`push_to_hub` cannot send anything with HF_HUB_OFFLINE" in fails(
        "push_to_hub: true\nhub_model_id: my/own\n"
    )


class TestPretrainedParts:
    @pytest.mark.parametrize("name", ["models/base/encoder", "./models", "/nowhere", "~/nowhere", "part.safetensors"])
    def test_a_path_is_no_matter_of_the_network(self, fails, name, monkeypatch):
        monkeypatch.setattr(sources.huggingface_hub, "model_info", None)
        error = fails("", "--audio_model", name)
        assert error.startswith(f"`audio_model` is {name!r}, and there is no such folder. Give one with config.json")

    def test_a_folder_that_is_no_checkpoint_is_told_before_data_are_read(self, fails, tmp_path, monkeypatch):
        monkeypatch.setattr(train_part, "load_rows", None)
        (tmp_path / "other" / "joint" / "checkpoint-9").mkdir(parents=True)
        parts = "audio_model: none\nlanguage_model: none\nadapter: none\nsystem_prompt: none\n"
        start = [parts, "--checkpoint", "other/joint"]
        assert fails(*start).startswith(
            "`checkpoint` is 'other/joint', which has no config.json. It is that of a stage"
        )
        for name, parent in (("adapter", None), ("joint", "adapter")):
            (tmp_path / "other" / name).mkdir(exist_ok=True)
            (tmp_path / "other" / name / "stage.json").write_text(json.dumps({"stage": name, "parent": parent}))
        assert "It is that of a run; give other/joint, or an earlier stage: other/adapter." in fails(
            parts, "--checkpoint", "other"
        )
        assert "Give one with config.json" in fails("", "--audio_model", "other")

    def test_a_damaged_checkpoint_is_told_before_data_are_read(self, fails, tmp_path, tiny_checkpoint, monkeypatch):
        monkeypatch.setattr(train_part, "load_rows", None)
        folder = shutil.copytree(tiny_checkpoint, tmp_path / "joint")
        (folder / "optimizer.pt").write_bytes(b"removed later")
        record = {key: {} for key in ("base_models", "hyperparameters", "trainable_parameters", "versions")}
        record |= {"stage": "joint", "parent": None, "seed": 1, "data": {"fingerprint": "", "rows": {}, "hours": {}}}
        write_checkpoint_record(folder, record)
        (folder / "optimizer.pt").unlink()
        sources.check_sources(ModelArguments(checkpoint=str(folder)))
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
        parts = "audio_model: none\nlanguage_model: none\nadapter: none\nsystem_prompt: none\n"
        error = fails(parts, "--checkpoint", str(folder))
        assert "joint/model.safetensors has" in error and "or give another `checkpoint`." in error

    def test_weights_without_a_record_are_read_by_the_main_process_alone(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "PartialState", lambda: SimpleNamespace(is_main_process=False))
        monkeypatch.setattr(sources, "broadcast_object_list", lambda mine: [{"of": "the main process"}, *mine])
        monkeypatch.setattr(sources, "files_of", None)
        assert sources.files_of_start(tmp_path) == {"of": "the main process"}

    @pytest.mark.parametrize("cause", [HTTPError("no route to host"), OfflineModeIsEnabled("no route to host")])
    def test_without_a_network_it_is_said_how_to_go_on(self, fails, cause, monkeypatch):
        def fail(*args, **kwargs):
            raise cause

        monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(sources.huggingface_hub, "model_info", fail)
        error = fails("", "--language_model", "nobody/nothing")
        assert error.startswith(
            "`language_model` is 'nobody/nothing': no folder here, not among earlier downloads, and"
        )
        assert "(no route to host)" in error and "hf download nobody/nothing --local-dir models/nothing" in error
        assert "--language_model models/nothing" in error

    def test_what_a_dry_run_says_of_them(self, monkeypatch, tmp_path):
        files = [SimpleNamespace(filename=name, file_size=size, will_download=new) for name, size, new in (
            ("config.json", 10, False), ("model.safetensors", 3000, True))]  # fmt: skip
        asked = []
        monkeypatch.setattr(
            sources.huggingface_hub,
            "snapshot_download",
            lambda name, **settings: asked.append((name, settings)) or files,
        )
        parts = ModelArguments(audio_model="nobody/whisper", language_model=str(tmp_path))
        (planned,) = sources.planned_parts(parts)
        assert planned.name == "nobody/whisper" and planned.bytes_missing() == 3000
        assert planned.missing == {"nobody/whisper/model.safetensors"}
        ((name, settings),) = asked
        assert name == "nobody/whisper" and settings["dry_run"] is True
        wanted = [name for name in ("model.safetensors", "model-00001-of-00002.safetensors", "model.fp32-00001.safetensors",
                  "pytorch_model.bin", "flax_model.msgpack", "tokenizer.json")
                  if any(fnmatch(name, one) for one in settings["allow_patterns"])]  # fmt: skip
        assert wanted == ["model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"]
        monkeypatch.setattr(sources.huggingface_hub, "try_to_load_from_cache", lambda name, file: "here")
        assert sources.planned_parts(parts) == []

    def test_a_copy_of_an_earlier_download_is_used(self, monkeypatch, caplog):
        def fail(*args, **kwargs):
            raise HTTPError("no route to host")

        monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(sources.huggingface_hub, "model_info", fail)
        monkeypatch.setattr(sources.huggingface_hub, "try_to_load_from_cache", lambda *args: "config.json")
        sources._look_at_the_hub("audio_model", "openai/whisper-base")
        assert sources.constants.HF_HUB_OFFLINE
        assert caplog.messages == [
            "The Hub cannot be reached (no route to host): parts are taken from earlier downloads"
        ]


class TestMessages:
    def say(self, error: Exception, capsys) -> str:
        with pytest.raises(SystemExit) as stopped, mistakes_in_one_message("part"):
            raise error
        assert stopped.value.code == 2
        return capsys.readouterr().err

    def test_a_full_disk(self, capsys):
        error = OSError(errno.ENOSPC, "No space left on device", "runs/mine/model.safetensors")
        assert self.say(error, capsys).startswith("part: runs/mine/model.safetensors: No space left on device")

    def test_a_port_that_is_taken(self, capsys):
        error = torch.distributed.DistNetworkError("The server socket has failed to listen on port 29500: EADDRINUSE")
        assert self.say(error, capsys).startswith("part: The server socket has failed to listen on port 29500")

    def test_the_address_of_a_proxy_that_is_none(self, capsys):
        assert self.say(pytest.importorskip("httpx2").InvalidURL("Invalid port: 'xx'"), capsys).startswith(
            "part: Invalid port: 'xx'"
        )

    def test_a_device_with_too_little_memory(self, capsys):
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        assert self.say(error, capsys).startswith("part: CUDA out of memory. Tried to allocate 2.00 GiB")

    def test_a_package_that_is_missing(self, capsys):
        error = ModuleNotFoundError("No module named 'gradio'", name="gradio")
        assert "No module named 'gradio'; install it with: pip install gradio" in self.say(error, capsys)

    def test_errors_of_ours_and_of_debugging_keep_their_traceback(self):
        with pytest.raises(TypeError), mistakes_in_one_message("part"):
            raise TypeError("ours")
        with pytest.raises(OSError, match="theirs"), mistakes_in_one_message("part", debug=True):
            raise OSError("theirs")

    def test_ctrl_c_says_how_to_go_on(self, capsys):
        with pytest.raises(SystemExit) as stopped, mistakes_in_one_message("part", interrupted=lambda: "Go on."):
            raise KeyboardInterrupt
        assert stopped.value.code == 130 and capsys.readouterr().err == "\npart: Go on.\n"

    def test_debug_without_a_value_is_no_setting_of_trainer(self):
        assert take_debug(["mine.yaml", "--debug", "--seed", "1"]) == (["mine.yaml", "--seed", "1"], True)
        assert take_debug(["mine.yaml", "--debug", "underflow_overflow"])[1] is False


class TestCommand:
    def test_as_part_train_was_called(self, monkeypatch):
        monkeypatch.setenv("PART_COMMAND", "part train 'my recipe.yaml' --force true --resume=false --seed 7")
        assert launches.command() == "part train 'my recipe.yaml' --force true --resume=false --seed 7"
        assert launches.command(resume=True) == "part train 'my recipe.yaml' --seed 7 --resume true"

    def test_a_token_is_not_said_again(self, monkeypatch, fails):
        for given in ("--hub_token abc123", "--hub-token=abc123", "--hub_token hf_" + "a" * 34):
            monkeypatch.setenv("PART_COMMAND", f"part train mine.yaml {given} --seed 7")
            said = launches.command(resume=True)
            assert (
                "***" in said
                and "abc123" not in said
                and "hf_" not in said
                and said.endswith("--seed 7 --resume true")
            )
        error = fails("", "--hub_tokn=abc123")
        assert error.startswith("Unknown option '--hub_tokn'.") and "abc123" not in error

    @pytest.mark.parametrize(
        ("parent", "expected"),
        [
            (["/usr/bin/python", "/bin/accelerate", "launch", "--cpu", "train_part.py", "a.yaml"],
             "accelerate launch --cpu train_part.py a.yaml"),
            (["python3.11", "-m", "accelerate.commands.launch", "train_part.py", "a.yaml"],
             "accelerate launch train_part.py a.yaml"),
            (["/usr/bin/python", "/bin/torchrun", "--nproc_per_node", "2", "train_part.py", "a.yaml"],
             "torchrun --nproc_per_node 2 train_part.py a.yaml"),
            (["-bash"], "python train_part.py a.yaml"),
            (["bash", "train.sh", "--all", "a.yaml"], "python train_part.py a.yaml"),
        ],
    )  # fmt: skip
    def test_as_the_launcher_was_called(self, parent, expected, monkeypatch):
        class Process:
            def parent(self):
                return self

            def cmdline(self):
                return parent

        monkeypatch.delenv("PART_COMMAND", raising=False)
        monkeypatch.setattr(launches.psutil, "Process", Process)
        monkeypatch.setattr(sys, "argv", ["train_part.py", "a.yaml"])
        assert launches.command() == expected
