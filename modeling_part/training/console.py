# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a person sees while a stage trains: one short line per log, and per evaluation a small table of languages.

Everything else that is logged is in `log_history.json` and in the trackers.
"""

import logging
import re
import shutil
import sys
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import datasets
import psutil
import torch
import transformers
from transformers import TrainerCallback

from ..data.batches import Batches
from ..data.loading import Rows
from ..evaluation.tables import duration
from ..prompts_part import TASKS
from ..recipes.arguments import PARTTrainingArguments
from ..recipes.stages import Stage
from .launches import INDENT
from .memory import GIB


logger = logging.getLogger(__name__)

LANGUAGES_SHOWN = 64  # of each task; all are in the log
# How a measure is headed, in the order of the columns, and the factor of what is shown.
MEASURES = {
    "loss": ("loss", 1, 3),
    "ctc_loss": ("CTC loss", 1, 3),
    "wer": ("WER %", 100, 1),
    "cer": ("CER %", 100, 1),
    "unnamed_wer": ("unnamed %", 100, 1),  # of transcripts that were asked for without the name of the language
    "unnamed_cer": ("unnamed %", 100, 1),
    "error_rate": ("CTC WER %", 100, 1),
    "bleu": ("BLEU", 1, 1),
    "chrf": ("chrF", 1, 1),
}


class _Format(logging.Formatter):
    """The time and the message, in whole words on a terminal; what is not as it should be says so.

    Lines after the first stay as they are: tables, which fit, and commands, which are copied.
    """

    def format(self, record: logging.LogRecord) -> str:
        text, width = super().format(record), terminal_width()
        if record.levelno >= logging.WARNING:
            time_of_day, rest = text.split(" ", 1)
            text = f"{time_of_day} {record.levelname.capitalize()}: {rest}"
        first, *others = text.split("\n")
        if width is not None and len(first) > width:
            options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": INDENT}
            first = textwrap.fill(first, width, replace_whitespace=False, drop_whitespace=True, **options)
        return "\n".join([first, *others])


def set_up_logging(args: PARTTrainingArguments) -> None:
    """Messages of the main process on the screen; warnings of the others. Then what the run computes on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Format("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    level = logging.INFO if args.process_index == 0 else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in ("httpx", "httpx2", "datasets", "torch", "numexpr", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger("huggingface_hub.utils._http").addFilter(_said_once())
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    processes = "1 process" if args.world_size == 1 else f"{args.world_size} processes"
    logger.info("Run %s on %s, %s; %s", args.output_dir, _device_name(args), processes, args.precision_reason)


def _said_once() -> Callable[[logging.LogRecord], bool]:
    """A filter that lets the first of a library's messages about trying again through, and drops the others."""
    said = set()

    def is_new(record: logging.LogRecord) -> bool:
        kind = "retry" if re.search(r"Retry|thrown while requesting", record.getMessage()) else record.getMessage()
        is_known = kind in said
        said.add(kind)
        return not is_known

    return is_new


def _device_name(args: PARTTrainingArguments) -> str:
    if args.device.type == "cuda":
        return torch.cuda.get_device_name(args.device)
    return "the CPU" if args.device.type == "cpu" else str(args.device)


class Console(TrainerCallback):
    """Writes the lines of one stage.

    Args:
        stage: that trains.
        later: the stages of the run that follow it.
        batches: of the stage.
        rows: of the run, from which the length of the later stages is estimated.
    """

    def __init__(self, stage: Stage, later: Sequence[Stage], batches: Batches, rows: Rows) -> None:
        self.stage = stage
        self.batches = batches
        self.later_steps = estimate_steps(stage, later, batches, rows)
        # Steps of later stages take longer than these where the language model does not run yet.
        self.runs_light = not stage.losses.get("nll") and any(one.losses.get("nll") for one in later)
        self._began = self._first_step = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Start the clock."""
        self._began, self._first_step = time.perf_counter(), state.global_step
        if args.stage is not None:
            self.later_steps = 0

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """One line, or after an evaluation the dev losses and a table."""
        if not state.is_world_process_zero or not logs:
            return
        width = terminal_width()
        if "loss" in logs:
            step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
            logger.info("%s", fold([step, *log_parts(logs, self.stage), *self._time_left(state)], width))
        elif "eval_loss" in logs:
            figures = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
            logger.info("%s", figures_with_table(f"dev at step {state.global_step}", figures, width))
            write_total(logs)

    def _time_left(self, state) -> list[str]:
        done = state.global_step - self._first_step
        if not done:
            return []
        pace = (time.perf_counter() - self._began) / done
        stage = (state.max_steps - state.global_step) * pace
        if not self.later_steps:  # nothing follows, or nothing tells how long that is
            return [f"{duration(stage)} left"]
        run = "run over" if self.runs_light else "run"
        return [f"{duration(stage)} left ({run} {duration(stage + self.later_steps * pace)})"]


def estimate_steps(stage: Stage, later: Sequence[Stage], batches: Batches, rows: Rows) -> int | None:
    """About how many optimizer steps the later stages have; None where nothing tells."""
    if all(one.max_steps is not None for one in later):
        return sum(one.max_steps for one in later)
    if rows.is_streamed or rows.train is None or not batches.report["steps"]:
        return None
    count = Counter(rows.train["task"])

    def drawn(one: Stage) -> float:
        return sum(weight * count[task] for task, weight in one.tasks.items())

    per_row = batches.report["steps"] / max(drawn(stage), 1)
    return round(sum(one.max_steps or one.epochs * drawn(one) * per_row for one in later))


def log_parts(logs: Mapping[str, float], stage: Stage) -> list[str]:
    """What a line of the log says between its step and the time that is left."""
    parts = [f"loss {_losses_of_tasks(logs) or format(logs['loss'], '.3f')}"]
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.1e}")
    if logs.get("audio_hours_per_second"):
        parts.append(f"{3600 * logs['audio_hours_per_second']:.3g} s/s")
    if stage.trains_language_model and "gate_open_share" in logs:
        parts.append(f"gate {100 * logs['gate_open_share']:.0f}%")
    return parts


def _losses(logs: Mapping[str, float], task: str) -> str:
    found = [logs.get(f"{task}_{name}") for name in ("loss", "ctc_loss")]
    if found[0] is None:
        return "" if found[1] is None else f"{task} CTC {found[1]:.3f}"
    return f"{task} {found[0]:.3f}" + ("" if found[1] is None else f" (CTC {found[1]:.3f})")


def _losses_of_tasks(figures: Mapping[str, float]) -> str:
    return " ".join(filter(None, (_losses(figures, task) for task in TASKS)))


def figures_with_table(title: str, figures: Mapping[str, float], width: int | None) -> str:
    """Dev losses and what was scored: the means in a line, then each task's values by language.

    Args:
        title: what they are of.
        figures: `asr_loss`, `asr/fr_loss`, `s2tt/fr-en_bleu`, `ctc/fr_error_rate`, ...
        width: of the terminal; None where there is none.
    """
    table = language_table(figures, (width or 120) - len(INDENT))
    return f"\n{INDENT}".join([fold([title, *_means(figures)], width), *table])


def write_total(logs: Mapping[str, float]) -> None:
    """In a log file, an evaluation's total as `Trainer` prints it: what reads its logs looks for this.

    It is also what `metric_for_best_model` compares, which the means per task do not tell.
    """
    if terminal_width() is None and "eval_loss" in logs:
        logger.info("%s", {name: logs[name] for name in ("eval_loss", "epoch") if name in logs})


def _means(figures: Mapping[str, float]) -> list[str]:
    losses = _losses_of_tasks(figures)
    parts = [f"loss {losses}"] if losses else []
    rates = {"CTC WER": "ctc_error_rate", "asr errors": "asr_error_rate", "unnamed": "asr_unnamed_error_rate"}
    parts += [f"{name} {100 * figures[key]:.1f} %" for name, key in rates.items() if key in figures]
    scores = {"BLEU": "s2tt_bleu", "chrF": "s2tt_chrf", "BLEU of text": "mt_bleu"}
    return parts + [f"{name} {figures[key]:.1f}" for name, key in scores.items() if key in figures]


def language_table(figures: Mapping[str, float], width: int) -> list[str]:
    """The values of each task by language, in as many columns side by side as `width` characters hold."""
    values: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, value in figures.items():
        task, _, rest = name.partition("/")
        language, _, measure = rest.partition("_")
        if measure in MEASURES:
            values["asr" if task == "ctc" else task][language][measure] = value
    return [line for task in TASKS if task in values for line in _task_table(task, values[task], width)]


def _task_table(task: str, values: Mapping[str, Mapping[str, float]], width: int) -> list[str]:
    """The lines of one task: down the first column, then the next."""
    measures = [measure for measure in MEASURES if any(measure in one for one in values.values())]
    languages = sorted(values)
    shown = languages[:LANGUAGES_SHOWN]
    first = max(len(task), *map(len, shown))
    widths = [max(len(MEASURES[measure][0]), 6) for measure in measures]
    header = [
        task.ljust(first),
        *(MEASURES[measure][0].rjust(size) for measure, size in zip(measures, widths, strict=True)),
    ]
    cells = []
    for language in shown:
        cell = [language.ljust(first)]
        for measure, size in zip(measures, widths, strict=True):
            _, factor, digits = MEASURES[measure]
            value = values[language].get(measure)
            cell.append(("-" if value is None else f"{factor * value:.{digits}f}").rjust(size))
        cells.append("  ".join(cell))
    blocks = max(1, min((width + 3) // (len(cells[0]) + 3), -(-len(cells) // 4)))
    height = -(-len(cells) // blocks)
    blocks = -(-len(cells) // height)
    lines = [" | ".join(["  ".join(header)] * blocks)]
    lines += [" | ".join(cells[row::height]) for row in range(height)]
    if len(languages) > len(shown):
        lines.append(f"and {len(languages) - len(shown):,} more: see log_history.json")
    return lines


def fold(parts: Sequence[str], width: int | None) -> str:
    """Parts with two spaces between, over several indented lines where they do not fit into `width`; None: one line."""
    lines, room = [parts[0]], None if width is None else width - len(INDENT)
    for part in parts[1:]:
        if room is not None and len(lines[-1]) + 2 + len(part) > room:
            lines.append(f"  {part}")
        else:
            lines[-1] += f"  {part}"
    return f"\n{INDENT}".join(lines)


def terminal_width() -> int | None:
    """Columns of the terminal; None where the messages go somewhere else."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else None


def memory_line(device: torch.device) -> str:
    """What this process has now of the device's memory; of the main memory for a CPU."""
    if device.type == "cuda":
        used, total = torch.cuda.memory_reserved(device), torch.cuda.mem_get_info(device)[1]
    else:
        used, total = psutil.Process().memory_info().rss, psutil.virtual_memory().total
    return f"{used / GIB:.1f} of {total / GIB:.1f} GiB of memory"
