"""Text tasks wider than translation: conversations and prompts with answers, which open the language model alone."""

import datasets
import pytest
import tiny_training
from made_data import write_lines

from modeling_part.data.corpora import read_corpora
from modeling_part.data.rows import CorpusError
from modeling_part.recipes.stages import Stage, part_of
from modeling_part.training.checks import check_test_rows


CHATS = [
    [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Goethe."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And Hamlet?"},
        {"role": "assistant", "content": "Shakespeare."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "Around 1600."},
    ],
]
EXPECTED = [("Who wrote Faust?", "Goethe."), ("Be brief.\n\nAnd Hamlet?", "Shakespeare.")]
SPEC = {"tasks": ["text"], "languages": ["en"], "columns": {"messages": "messages"}}


def said(dataset) -> list[tuple[str, str]]:
    assert {(row["task"], row["source_lang"], row["target_lang"], row["audio"]) for row in dataset} == {
        ("text", "en", "en", None)
    }
    assert {row["prompt"] for row in dataset} == {None}, "what is asked stands in source_text, once"
    return [(row["source_text"], row["text"]) for row in dataset]


@pytest.mark.parametrize("streaming", [False, True])
def test_conversations_of_a_dataset(tmp_path, streaming, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    records = [{"messages": chat, "source": "x", "prompt": chat[0]["content"], "context": ""} for chat in CHATS]
    datasets.Dataset.from_list(records).to_parquet(tmp_path / "chat" / "train-00000.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path / "chat"), **SPEC, "streaming": streaming}
    dataset, _ = read_corpora([spec])
    assert said(list(dataset)) == EXPECTED


def test_an_odd_first_line_is_one_broken_row(tmp_path):
    pairs = [{"source_text": f"{n} + 0?", "text": str(n)} for n in range(200)]
    path = write_lines(tmp_path / "pairs.jsonl", [{"comment": "made by hand"}, *pairs])
    dataset, report = read_corpora([{"reader": "text_pairs", "path": path, "tasks": ["text"], "languages": ["en"]}])
    assert len(dataset) == 200 and sum(each["rows"] for each in report["dropped"]["text_pairs"].values()) == 1


def test_conversations_prompts_and_answers_of_jsonl(tmp_path):
    path = write_lines(tmp_path / "chat.jsonl", [{"messages": chat} for chat in CHATS])
    assert said(read_corpora([{"reader": "text_pairs", "path": path, **SPEC}])[0]) == EXPECTED
    turns = [[{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]]
    path = write_lines(tmp_path / "share.jsonl", [{"conversations": turns[0]}])
    spec = {"reader": "text_pairs", "path": path, **SPEC, "columns": {"messages": "conversations"}}
    assert said(read_corpora([spec])[0]) == [("Hi.", "Hello.")]
    path = write_lines(tmp_path / "pairs.jsonl", [{"prompt": "2 + 2?", "answer": "4"}])
    spec |= {"path": path, "columns": {"source_text": "prompt", "text": "answer"}}
    assert said(read_corpora([spec])[0]) == [("2 + 2?", "4")]
    record = {"task": "text", "source_lang": "en", "source_text": "2 + 2?", "text": "4"}
    path = write_lines(tmp_path / "manifest.jsonl", [record])
    assert said(read_corpora([{"reader": "manifest", "path": path}])[0]) == [("2 + 2?", "4")]
    asked = {"task": "text", "source_lang": "en", "prompt": "2 + 2?", "answer": "4"}
    path = write_lines(tmp_path / "asked.jsonl", [asked])
    spec = {"reader": "manifest", "path": path, "columns": {"source_text": "prompt", "text": "answer"}}
    assert said(read_corpora([spec])[0]) == [("2 + 2?", "4")]


def test_an_empty_context_is_none_and_a_full_one_is_kept(tmp_path):
    records = [
        {"instruction": "Who?", "context": context, "response": "Goethe."} for context in ("", " ", "Faust", None)
    ]
    datasets.Dataset.from_list(records).to_parquet(tmp_path / "dolly" / "train-00000.parquet")
    columns = {"source_text": "instruction", "text": "response"}
    spec = {"reader": "dataset", "path": str(tmp_path / "dolly"), **SPEC, "columns": columns}
    dataset, report = read_corpora([spec])
    assert dataset["context"][:] == [None, None, "Faust", None] and not report["dropped"]


def test_odd_conversations_are_counted(tmp_path):
    odd = [
        CHATS[0],
        [],
        "no list",
        [{"role": "assistant", "content": "Hello."}],
        [{"role": "user", "content": "Hello?"}],
        [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A cat."}],
        [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": " "}],
        [None, 3],
    ]
    path = write_lines(tmp_path / "chat.jsonl", [{"messages": chat} for chat in odd])
    dataset, report = read_corpora([{"reader": "text_pairs", "path": path, **SPEC}], max_bad_fraction=1.0)
    assert said(dataset) == EXPECTED[:1]
    assert {reason: entry["rows"] for reason, entry in report["dropped"]["text_pairs"].items()} == {
        "'messages' do not begin with a turn of the user and one of the assistant": 5,
        "a turn of 'messages' is no text": 1,
        "no text": 1,
    }
    with pytest.raises(CorpusError, match="no column gives 'source_lang'; name one language under 'languages'"):
        read_corpora([{"reader": "text_pairs", "path": path, **SPEC, "languages": None}])


@pytest.fixture
def questions():
    """Rows of the task text."""
    rows = tiny_training.tiny_dataset(tasks=("mt",), count=3)
    return rows.map(lambda row: {"task": "text", "target_lang": row["source_lang"]})


def test_a_question_is_asked_without_an_instruction(questions):
    _, processor = tiny_training.tiny_model()
    row = questions[0]
    batch = processor(task="text", source_text=row["source_text"], source_lang="en", text=row["text"])
    asked = processor.tokenizer.decode(batch["input_ids"][0][batch["labels"][0] == -100])
    assert row["source_text"] in asked and "ranslate" not in asked
    learned = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert learned.startswith(row["text"])


def test_the_gate_opens_the_language_model_and_nothing_else_moves(questions, tmp_path):
    stage = tiny_training.joint_stage(tasks={"text": 1.0})
    trainer = tiny_training.make_trainer(tmp_path, stage, questions, steps=2)
    before = tiny_training.snapshot(trainer.model)
    trainer.train()
    moved = tiny_training.changed(before, tiny_training.snapshot(trainer.model))
    assert {part_of(name) for name in moved} == {"language_model"}
    assert any("text/en_loss" in entry for entry in trainer.state.log_history)


def test_a_stage_that_keeps_the_language_model_closed_refuses_text():
    with pytest.raises(ValueError, match="`text` can only train the language model, which stays frozen"):
        Stage("x", tasks={"asr": 1.0, "text": 1.0}, learning_rates={"adapter": 1e-3})


def test_answers_are_not_scored(questions):
    with pytest.raises(
        ValueError, match=r"of the task text, whose answers nothing here can score; leave .* `train_data`"
    ):
        check_test_rows(questions)
