# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Model cards: a stage's record and evaluation, rendered through `model_cards/model_card.md`.

A card states no figure that its inputs do not hold: numbers are rounded, never added up.
"""

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..data.addresses import HUB_ID
from ..data.rows import direction
from ..evaluation.pictures import plot_losses, save_picture
from ..evaluation.report_file import check_report
from ..evaluation.reports import normalizer_notes
from ..evaluation.run_files import read_stage
from ..evaluation.tables import (
    language_name,
    markdown_cell,
    markdown_code,
    number,
    percent,
    plain_value,
    with_interval,
)
from ..recipes.files import CheckpointError
from ..recipes.stage_record import check_stage_info, read_stage_json
from ..requirements_part import OLDEST_TRANSFORMERS


TASK_NAMES = {"asr": "Speech recognition", "s2tt": "Speech translation", "mt": "Text translation"}

# Task types of the Hub. It has none for speech translation; the text side is what is measured.
HUB_TASKS = {"asr": "automatic-speech-recognition", "s2tt": "translation", "mt": "translation"}
TAGS = ("part", "speech-llm", "speech-translation", "automatic-speech-recognition")
LANGUAGE_TAG = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")

# The last line of a card that is written into a stage's folder.
MARKER = "<!-- Made by PART, and made anew with the stage: delete this line to keep your edits. -->"

# Types of what the parts of `stage.json` hold that a card shows; by group, by part of the model, by package.
RECORD_VALUES = {
    "base_models": (str,),
    "trainable_parameters": (int, type(None)),
    "versions": (str,),
    "rows": (int,),
    "hours": (int, float, type(None)),
}


def card_folder() -> Path:
    """The folder of templates: `modeling_part.model_cards` once installed, `model_cards` in the repository.

    Raises:
        FileNotFoundError: neither is there.
    """
    if (installed := importlib.util.find_spec("modeling_part.model_cards")) is not None:
        return Path(installed.origin).parent
    checkout = Path(__file__).resolve().parents[2] / "model_cards"
    if not checkout.is_dir():
        raise FileNotFoundError(f"The model card templates are not in {checkout}; install the package again.")
    return checkout


def stage_tag(stage: str) -> str:
    """The tag of a stage in its repository: `stage-encoder` for `encoder`."""
    return f"stage-{stage}"


def base_license(model: str) -> str:
    """Licence of a base model by `model_cards/base_licenses.json`; `"unknown: check"` where it is not listed.

    A folder or a bare name, such as `models/whisper-base`, is known by its last part: a copy, or one made from packages.
    """
    table = json.loads((card_folder() / "base_licenses.json").read_text(encoding="utf-8"))
    found = next((license for pattern, license in table if fnmatchcase(model, pattern)), None)
    if found is None and not (HUB_ID.fullmatch(model) and not Path(model).is_dir()):
        name = re.split(r"[/\\]", model)[-1]
        named = (license for pattern, license in table if fnmatchcase(name, pattern.partition("/")[2]))
        found = next((f"{license} (known by its name)" for license in named), None)
    return found or "unknown: check"


def write_card(folder: str | Path) -> Path | None:
    """Write `README.md` into the folder of a finished stage, and `loss.png` where its log has losses.

    The card of a folder: its examples name the folder, and it shows samples of the test data. Edits of a user's stay: a
    `README.md` without the last line of such a card is left alone, and so is a link.

    Returns:
        The path; None where a README.md of the user's is there.

    Raises:
        CheckpointError: `stage.json` or `report.json` is not what it must be.
    """
    folder = Path(folder)
    path = folder / "README.md"
    if path.is_symlink() or (path.exists() and not (path.is_file() and MARKER.encode() in path.read_bytes())):
        return None
    stage = read_stage(folder)
    losses = plot_losses([stage])
    if losses is not None:
        save_picture(losses, folder / "loss.png")
    record = read_stage_json(folder)
    text = render_card(
        record,
        stage["report"],
        repo_id=folder.as_posix(),
        samples=stage["examples"],
        has_curve=losses is not None,
        local=True,
    )
    path.write_text(text, encoding="utf-8")
    return path


def render_card(
    stage_info: Mapping,
    report: Mapping | None = None,
    *,
    repo_id: str,
    license: str | None = None,
    samples: Sequence[Mapping] = (),
    has_curve: bool = False,
    local: bool = False,
) -> str:
    """Render the model card of a stage.

    Args:
        stage_info: what `stage.json` holds, see `stage_record.write_stage_json`.
        report: what `report.json` holds, see `scoring.score`; without it the card says that there is no evaluation.
        repo_id: the repository on the Hub, `USER/NAME`.
        license: identifier for the card's metadata, such as "apache-2.0"; left out by default, since it is the
            publisher's to choose.
        samples: predictions to show: they quote their corpus.
        has_curve: whether `loss.png` lies beside the card.
        local: the card of a folder, `repo_id`, instead of a repository.

    Returns:
        The text of README.md: metadata that the Hub accepts, then the card.

    Raises:
        CheckpointError: `stage_info` or `report` lacks a part, or one has another type.
        ValueError: `repo_id` or `license` is none, or the metadata is not valid.
    """
    check_record(stage_info)
    if report is not None:
        check_report(report)
    if not local:
        validate_repo_id(repo_id)
    if license is not None and not (isinstance(license, str) and LICENSE.fullmatch(license)):
        raise ValueError(
            f"License {license!r} is no identifier; give one of https://huggingface.co/docs/hub/repositories-licenses, such "
            "as apache-2.0."
        )
    # `ModelCard.from_template` renders without filters, and leaves out in silence what a template names wrongly.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False)
    environment.filters.update(
        cell=markdown_cell, code=markdown_code, plain=lambda value: markdown_cell(plain_value(value))
    )
    template = environment.from_string((card_folder() / "model_card.md").read_text(encoding="utf-8"))
    metadata = _metadata(stage_info, report, repo_id, license)
    text = template.render(
        metadata=metadata.to_yaml(),
        repo_id=json.dumps(repo_id, ensure_ascii=False)[1:-1],
        local=local,
        marker=MARKER,
        has_curve=has_curve,
        samples=[_sample_row(row) for row in samples],
        **_body(stage_info, report, repo_id),
    )
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
    ModelCard(text)  # parses the metadata, results included, and raises where they are not valid
    return text


def check_record(stage_info: Mapping, name: str | Path = "stage_info") -> None:
    """Raise where a stage's record lacks a part that a card shows, or a value has another type.

    Raises:
        CheckpointError: names the part, the value and the fix.
    """
    if not isinstance(stage_info, Mapping):
        raise CheckpointError(
            f"{name} is {stage_info!r:.60}, but must be an object; restore it, or train the stage again."
        )
    check_stage_info(stage_info, name)
    for key, kinds in RECORD_VALUES.items():
        for entry, value in (stage_info["data"] if key in ("rows", "hours") else stage_info)[key].items():
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise CheckpointError(
                    f"{name}: {entry!r} of {key!r} is {value!r:.60}, but must be {kinds[0].__name__}; restore it, or train "
                    "the stage again."
                )
    for dataset in stage_info.get("datasets") or []:
        if not isinstance(dataset, str):
            raise CheckpointError(
                f"{name}: {dataset!r:.60} of 'datasets' is no name; write Hub ids such as google/fleurs."
            )


def group_languages(group: str) -> list[str]:
    """The languages of a group: `["rm-sursilv", "de"]` of `s2tt/rm-sursilv-de`, `["pt-BR"]` of `asr/pt-BR`.

    A second language starts where a subtag of two or three small letters follows another; regions are capitals or
    digits, scripts and variants longer. Empty where the group's name is none of [`data.rows.group_name`].
    """
    task, _, direction = group.partition("/")
    languages: list[str] = [direction] if task == "asr" else []
    for subtag in [] if languages else direction.split("-"):
        if not languages or re.fullmatch(r"[a-z]{2,3}", subtag):
            languages.append(subtag)
        else:
            languages[-1] += f"-{subtag}"
    return languages if len(languages) <= 2 and all(map(LANGUAGE_TAG.fullmatch, languages)) else []


def _metadata(stage_info: Mapping, report: Mapping | None, repo_id: str, license: str | None) -> ModelCardData:
    results = _results(report, stage_info)
    return ModelCardData(
        language=_languages(stage_info, report),
        license=license,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        base_model=[model for model in stage_info["base_models"].values() if HUB_ID.fullmatch(model)] or None,
        datasets=stage_info.get("datasets") or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        tags=list(TAGS),
        model_name=repo_id.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _languages(stage_info: Mapping, report: Mapping | None) -> list[str] | None:
    """ISO 639 codes of all languages trained or measured."""
    codes = set(trained_languages(stage_info["data"]["rows"]))
    for group in (report or {}).get("groups", {}).values():
        codes |= {group["source_lang"], group["target_lang"]}
    languages = {re.split("[-_]", code)[0].lower() for code in codes}
    return sorted(language for language in languages if re.fullmatch("[a-z]{2,3}", language)) or None


def _results(report: Mapping | None, stage_info: Mapping) -> list[EvalResult]:
    """The report as results per corpus, task and language or direction."""
    results = []
    for corpus, groups in _corpora(report).items():
        for name, group in groups.items():
            figures = {metric: group.get(metric) for metric in ("bleu", "chrf")}
            if group["task"] == "asr" and group["error_rate"] is not None:
                figures = {group["error_metric"].lower(): 100 * group["error_rate"]} | figures
            results += [
                EvalResult(
                    task_type=HUB_TASKS[group["task"]],
                    task_name=TASK_NAMES[group["task"]],
                    dataset_type=corpus,
                    dataset_name=f"{corpus} ({name.partition('/')[2]})",
                    dataset_config=name.partition("/")[2],
                    metric_type=metric,
                    metric_name=f"{metric.upper()}, {stage_info['stage']} stage",
                    metric_value=round(value, 1),
                )
                for metric, value in figures.items()
                if value is not None
            ]
    return results


def _corpora(report: Mapping | None) -> dict[str, Mapping]:
    """Groups by corpus; a report of a single corpus does not name it."""
    if report is None:
        return {}
    if report.get("corpora"):
        return {corpus: figures["groups"] for corpus, figures in report["corpora"].items()}
    return {"evaluation": report["groups"]}


def _body(stage_info: Mapping, report: Mapping | None, repo_id: str) -> dict:
    """What the template needs, in the names that it uses."""
    trainable = stage_info["trainable_parameters"]
    data = stage_info["data"]
    return {
        "name": markdown_cell(repo_id.rpartition("/")[2]),
        "headline": [] if report is None else _headline(report),
        "languages": [markdown_cell(language_name(code)) for code in trained_languages(data["rows"])],
        "pipeline_call": _pipeline_call(data["rows"]),
        "stage": stage_info["stage"],
        "revision": stage_tag(stage_info["stage"]),
        "example_call": _example_call(data["rows"]),
        "oldest_transformers": OLDEST_TRANSFORMERS,
        "trained": {part: count for part, count in trainable.items() if count},
        "frozen": [markdown_cell(part) for part, count in trainable.items() if not count],
        "rows": [
            (*group.partition("/")[::2], count, "–" if (hours := data["hours"].get(group)) is None else hours)
            for group, count in sorted(data["rows"].items())
        ],
        "hyperparameters": _flatten(stage_info["hyperparameters"]),
        "metrics": _flatten(stage_info["metrics"]),
        "parent": _parent(stage_info),
        "base_models": [markdown_cell(f"{model} ({part})") for part, model in stage_info["base_models"].items()],
        "seed": stage_info["seed"],
        "fingerprint": data["fingerprint"],
        "versions": [markdown_cell(f"{package} {version}") for package, version in stage_info["versions"].items()],
        "evaluation": _tables(report),
        "unnamed": [_table_row(*item) for item in (report or {}).get("unnamed", {"groups": {}})["groups"].items()],
        "confidence": None if report is None else f"{100 * report['settings']['confidence']:g}",
        "signatures": _signatures(report),
        "normalizers": [] if report is None else normalizer_notes(report),
        "licenses": {model: base_license(model) for model in stage_info["base_models"].values()},
    }


def trained_languages(rows: Mapping) -> list[str]:
    """Codes of the languages in the groups that a stage was trained on, in order."""
    return sorted({code for group in rows for code in group_languages(group)})


def _headline(report: Mapping) -> list[str]:
    """The averages, each in a few words."""
    parts = []
    for task, average in report["macro"].items():
        metrics = {group["error_metric"] for group in report["groups"].values() if group["task"] == task}
        of = f" (mean of {average['groups']:g} {'languages' if task == 'asr' else 'directions'})"
        of = of if average["groups"] > 1 else ""
        name = TASK_NAMES.get(task, task)
        if task == "asr" and average.get("error_rate") is not None:
            measure = markdown_cell("/".join(sorted(metrics)))
            parts.append(f"{name}: {measure} {percent(average['error_rate'])} %{of}")
        elif average.get("bleu") is not None:
            parts.append(f"{name}: BLEU {number(average['bleu'])}{of}")
    return parts


def _sample_row(row: Mapping) -> list[str]:
    return [row["task"], direction(row["source_lang"], row["target_lang"]), row["reference"], row["hypothesis"]]


def _pipeline_call(rows: Mapping) -> str:
    """Arguments of the pipeline for the same example."""
    return _example_call(rows).replace('task="asr", ', "")


def _example_call(rows: Mapping) -> str:
    """Arguments of the processor for the first task and language that the stage was trained on."""
    for group in sorted(rows):
        task = group.partition("/")[0]
        languages = group_languages(group)
        if task == "asr" and len(languages) == 1:
            return f'"clip.wav", task="asr", source_lang="{languages[0]}"'
        if task == "s2tt" and len(languages) == 2:
            return f'"clip.wav", task="s2tt", source_lang="{languages[0]}", target_lang="{languages[1]}"'
    return '"clip.wav"'


def _parent(stage_info: Mapping) -> str:
    if stage_info["parent"] is None:
        return "the base models, with a new adapter"
    revision = stage_info.get("parent_revision")
    parent = f"the stage {markdown_cell(stage_info['parent'])}"
    return parent + (f", revision `{markdown_code(revision)}`" if revision else "")


def _tables(report: Mapping | None) -> list[dict]:
    """One table per corpus, titled where there are several."""
    corpora = _corpora(report)
    return [
        {"title": corpus if len(corpora) > 1 else None, "rows": [_table_row(*item) for item in groups.items()]}
        for corpus, groups in corpora.items()
    ]


def _table_row(name: str, group: Mapping) -> list[str]:
    task, _, direction = name.partition("/")
    errors = with_interval(percent(group["error_rate"]), group.get("error_rate_interval"), 100)
    return [
        task,
        direction,
        f"{group['error_metric']} {errors}",
        *[with_interval(number(group.get(metric)), group.get(f"{metric}_interval")) for metric in ("bleu", "chrf")],
        str(group["utterances"]),
        str(group["failed"]),
        *[percent(group[sign]) for sign in ("empty", "looping", "wrong_language")],
    ]


def _signatures(report: Mapping | None) -> list[str]:
    groups = (report or {}).get("groups", {}).values()
    return sorted({value for group in groups for key, value in group.items() if key.endswith("_signature")})


def _flatten(mapping: Mapping, prefix: str = "") -> list[tuple[str, object]]:
    """`{"a": {"b": 1}}` -> `[("a.b", 1)]`."""
    rows = []
    for key, value in mapping.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows
