"""Records: what is written is read, anything else is refused with one sentence that names the field."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from any_json import JSON, mutated, nodes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qa_helpers.common.io import CourseError
from qa_helpers.evaluation.metrics import LADDER, REST
from qa_helpers.evaluation.statistics import Interval, bootstrap_mean
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.record import Recorded, Retrieval, Run, paired_columns, unread_ids
from qa_helpers.experiment.record_files import read_record, write_record
from qa_helpers.experiment.scores import Score
from qa_helpers.experiment.spec import AsItComes, Combination, EvalSet, SpanTraining, change, read_experiment
from qa_helpers.report.documents import format_report, replace_report

FILES = ["answers.parquet", "run.json"]


def interval(*values):
    """The score of a few values, from 0 to 1; `statistics.bootstrap_mean` has tests of its own."""
    return Score.of(bootstrap_mean([100.0 * value for value in values], bounds=(0, 100))).model_dump()


def scored(**columns):
    """Scores of an evaluation set, by metric."""
    return {"questions": len(columns["f1"])} | {metric: interval(*column) for metric, column in columns.items()}


PROBE = {"loss": 2.5, "exact_match": 25.0, "f1": 33.33}
VALID = {
    "schema_version": 3,
    "experiment": {
        "kind": "train a span model",
        "name": "tiny",
        "train_size": 16,
        "evaluations": {"first": {"limit": 2}, "all": {"limit": None, "sampling": "random", "seed": 3}},
        "trainable": "lora",
        "start_from": None,
        "learning_rate": 0.0005,
        "retrieval": True,
        "layer_decay": 1,
        "per_passage": None,
    },
    "machine": {
        "device": "cpu",
        "device_name": "a processor",
        "precision": "fp32",
        "threads": 2,
        "memory_gib": 8.0,
        "system": "Linux x86_64",
        "versions": {"torch": "2"},
    },
    "fingerprints": {"train": "0123456789abcdef", "eval": "fedcba9876543210"},
    "ancestors": {
        "before": {
            "experiment": {"kind": "train a span model", "name": "before"},
            "fingerprints": {"train": "0" * 16, "eval": "1" * 16},
        }
    },
    "parameters": [10, 20],
    "stored_bytes": 124,
    "losses": [[10, 1.25], [20, 0.5]],
    "epochs": [{"epoch": number, "train": PROBE, "eval": PROBE} for number in (1, 2, 3)],
    "validation_size": 3,
    "scores": {
        "first": scored(string_equality=(0, 0), exact_match=(1, 0), f1=(1, 0), contained=(1, 0)),
        "all": scored(string_equality=(0, 0, 0), exact_match=(1, 0, 0), f1=(1, 0, 0.6667), contained=(1, 0, 1)),
    },
    "passages": 4,
    "timing": {
        "train_seconds": 1.5,
        "eval_seconds": 0,
        "train_questions_per_second": 10.7,
        "eval_questions_per_second": 20,
        "peak_memory_mib": 512,
    },
}
ANSWERS = {
    "id": ["a", "b", "c"],
    "prediction": ["the Cardinals", "", '日本 😀 \u2028\n"'],
    "confidence": [0.5, 0.0, 1.0],
    "f1": [1.0, 0.0, 0.6667],
    "relation": ["but for articles", "empty", "holds an answer and more words"],
    "rank_before": [1, 4, 2],
    "rank_after": [1, 1, 3],
}


def unshared():
    """A copy of the valid record with its columns, in which no object stands twice, so that a change is one change."""
    return json.loads(json.dumps(VALID | {"answers": ANSWERS}))


def write(folder, content, name="run.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def write_folder(folder, record):
    """Write a record, valid or not, without the package; returns its folder."""
    fields, columns = dict(record), record["answers"]
    del fields["answers"]
    write(folder, fields)
    decimals = {"confidence", "f1"} & set(columns)
    table = {name: pa.array(column) for name, column in columns.items()}
    table |= {name: table[name].cast(pa.float64()).cast(pa.decimal128(5, 4)) for name in decimals}
    whole = [name for name, column in table.items() if pa.types.is_integer(column.type)]
    table |= {name: table[name].cast(pa.int32()) for name in whole}
    pq.write_table(pa.table(table), folder / "answers.parquet")
    return folder


@pytest.fixture
def run(tmp_path):
    return read_record(write_folder(tmp_path, unshared()))


def test_a_valid_record_is_read(run):
    assert run.experiment.name == "tiny"
    assert run.experiment.epochs == 3
    assert run.losses == [(10, 1.25), (20, 0.5)]
    assert run.parameters == (10, 20)
    assert run.experiment.command == "python -m qa_helpers rerun records/tiny"
    assert run.indices == {"first": [0, 1], "all": [2, 1, 0]}
    assert run.column("exact_match", "all").tolist() == [0, 0, 1]
    assert run.questions.string_equality == [0, 0, 0]
    assert run.questions.contained == [1, 0, 1]
    assert run.questions.category == ["exact", "empty", "too long"]
    assert {step: count for step, count in run.ladder["all"].items() if count} == {
        "but for articles": 1,
        "holds an answer and more words": 1,
        REST: 1,
    }
    assert run.stored_bytes == 124
    assert run.retrieval.after == [1, 1, 3]
    assert run.column("prediction", "first").tolist() == ["the Cardinals", ""]
    assert str(run.scores["first"].f1) == "50.0 [1.3, 98.7]"


def test_writing_and_reading_change_nothing(tmp_path, run, finished):
    for one in (run, finished[1]):
        folder = tmp_path / "again"
        write_record(one, folder)
        assert read_record(folder) == one
        assert read_record(folder / "run.json") == one
        content = [(folder / name).read_bytes() for name in FILES]
        write_record(read_record(folder), folder)
        assert [(folder / name).read_bytes() for name in FILES] == content


def test_a_record_from_before_a_field_was_added_is_read(tmp_path):
    old = unshared()
    for name in ("stored_bytes", "passages", "ancestors"):
        del old[name]
    for name in ("rank_before", "rank_after"):
        del old["answers"][name]
    for name in ("retrieval", "layer_decay", "per_passage"):
        del old["experiment"][name]
    run = read_record(write_folder(tmp_path, old))
    assert run.stored_bytes is run.retrieval is None
    assert run.experiment.task == "span"
    assert run.experiment.retrieval is False
    assert run.ancestors == {}
    changed = run.experiment.model_dump(exclude_defaults=True)
    assert set(changed) == {"name", "train_size", "evaluations", "trainable", "learning_rate"}


FOLDER = Path(__file__).parents[2] / "records"
RECORDS = [path for part in (FOLDER, FOLDER / "cpu", FOLDER / "gpu") for path in sorted(part.glob("*/run.json"))]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.relative_to(FOLDER).as_posix())
def test_the_courses_records_are_read(path):
    assert read_record(path).experiment.name == path.parent.name


def test_a_record_holds_a_line_a_field(tmp_path, run):
    named = run.model_copy(update={"machine": run.machine.model_copy(update={"device_name": "日本"})})
    write_record(named, tmp_path)
    lines = (tmp_path / "run.json").read_text(encoding="utf-8").split("\n")
    assert [line.split('"')[1] for line in lines[1:-2]] == list(Recorded.model_fields)
    assert "日本" in "".join(lines)  # to be read by people


def test_the_columns_can_be_read_by_others(tmp_path, run):
    write_record(run, tmp_path)
    table = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row["prediction"] for row in table] == ANSWERS["prediction"]
    assert [float(row["f1"]) for row in table] == ANSWERS["f1"]
    assert [row["relation"] for row in table] == ANSWERS["relation"]
    assert [row["rank_after"] for row in table] == ANSWERS["rank_after"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_record(tmp_path, monkeypatch, run, broken):
    folder = tmp_path / "records" / "tiny"
    write_record(run, folder)
    before = [(folder / name).read_bytes() for name in FILES]

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(CourseError, match="cannot be written"):
        write_record(run.model_copy(update={"losses": []}), folder)
    monkeypatch.undo()
    assert [(folder / name).read_bytes() for name in FILES] == before
    assert sorted(os.listdir(folder)) == sorted(FILES)


# ---- broken records ---------------------------------------------------------------------------------------------
def at(*path, **values):
    """Change the object at a path of the record: new values, or `...` to delete."""

    def change(record):
        for key in path:
            record = record[key]
        for key, value in values.items():
            if value is ...:
                del record[key]
            else:
                record[key] = value

    return change


ENSEMBLE = {"kind": "combine runs", "name": "tiny", "mean_of": "answers", "members": ["a", "b"]}
FAULTS = {  # what is wrong: (how it comes about, what the message must say)
    "an experiment missing": (at(experiment=...), ("experiment: Field required",)),
    "timing missing": (at(timing=...), ("timing: Field required",)),
    "a name missing": (at("experiment", name=...), ("experiment.name: Field required",)),
    "a field too many": (at(comment="hello"), ("comment: Extra inputs",)),
    "a field too many inside": (at("experiment", code="import os"), ("experiment.code: Extra inputs",)),
    "another schema version": (at(schema_version=4), ("schema_version: ", "should be 3")),
    "schema version as text": (at(schema_version="3"), ("schema_version: ", "should be 3")),
    "a ladder beside the questions": (at(ladder={"all": {"but for case": 3}}), ("ladder: Extra inputs",)),
    "a name that leaves the folder": (at("experiment", name="../x"), ("experiment.name: ", "pattern")),
    "a name that is a path": (at("experiment", name="a/b"), ("experiment.name: ", "pattern")),
    "an absolute name": (at("experiment", name="/etc/passwd"), ("experiment.name: ", "pattern")),
    "a hidden name": (at("experiment", name=".x"), ("experiment.name: ", "pattern")),
    "a name with NUL": (at("experiment", name="a\0b"), ("experiment.name: ", "pattern")),
    "a name with a line's end": (at("experiment", name="a\n"), ("experiment.name: ", "pattern")),
    "a name of a thousand letters": (at("experiment", name="a" * 1000), ("experiment.name: ", "pattern")),
    "an empty name": (at("experiment", name=""), ("experiment.name: ", "pattern")),
    "a start that leaves the folder": (at("experiment", start_from="../x"), ("experiment.start_from: ", "pattern")),
    "an evaluation of a bad name": (at("experiment", evaluations={"../x": {}}), ("experiment.evaluations", "pattern")),
    "no evaluation": (at("experiment", evaluations={}), ("experiment.evaluations: ", "at least 1")),
    "an unknown sampling": (at("experiment", sampling="last"), ("experiment.sampling: ", "'first' or 'random'")),
    "no epochs": (at("experiment", epochs=0), ("experiment.epochs: ", "greater than or equal to 1")),
    "epochs without a number": (at("experiment", epochs=None), ("experiment.epochs: ", "integer")),
    "epochs as text": (at("experiment", epochs="3"), ("experiment.epochs: ", "integer")),
    "epochs without end": (at("experiment", epochs=10**30), ("experiment.epochs: ",)),
    "true as a batch size": (at("experiment", batch_size=True), ("experiment.batch_size: ", "integer")),
    "a batch too large for any library": (at("experiment", batch_size=10**30), ("experiment.batch_size: ",)),
    "a negative seed": (at("experiment", seed=-1), ("experiment.seed: ", "greater than or equal to 0")),
    "a seed too large for NumPy": (at("experiment", seed=2**32), ("experiment.seed: ", "less than 4294967296")),
    "a learning rate of 0": (at("experiment", learning_rate=0), ("experiment.learning_rate: ", "greater than 0")),
    "a learning rate of 1": (at("experiment", learning_rate=1), ("experiment.learning_rate: ", "less than 1")),
    "a model's name that breaks a table": (at("experiment", model="a | b"), ("experiment.model: ", "pattern")),
    "a model's name without end": (at("experiment", model="a" * 201), ("experiment.model: ", "200")),
    "a trained part that clears the screen": (
        at("experiment", trainable="\x1b[2J"),
        ("experiment.trainable: ", "pattern"),
    ),
    "an unknown schedule": (at("experiment", schedule="warm"), ("experiment.schedule: ", "'linear', 'cosine' or ")),
    "nothing but warm-up": (at("experiment", warmup=1), ("experiment.warmup: ", "less than 1")),
    "a layer decay of 0": (at("experiment", layer_decay=0), ("experiment.layer_decay: ", "greater than 0")),
    "a layer decay above 1": (at("experiment", layer_decay=1.1), ("experiment.layer_decay: ", "less than or equal")),
    "only smoothing": (at("experiment", label_smoothing=1), ("experiment.label_smoothing: ", "less than 1")),
    "unknown targets": (at("experiment", targets="last"), ("experiment.targets: ", "'first' or 'all'")),
    "no question of a passage": (at("experiment", per_passage=0), ("experiment.per_passage: ", "greater than")),
    "unknown questions": (at("experiment", questions="mine"), ("experiment.questions: ", "'asked' or 'cloze'")),
    "cloze questions by passage": (at("experiment", questions="cloze", per_passage=1), ("counts asked questions",)),
    "no last epoch": (at("experiment", average_last=0), ("experiment.average_last: ", "greater than or equal to 1")),
    "more last epochs than epochs": (
        at("experiment", average_last=4, trainable="all"),
        ("experiment: ", "no 4 of 3 epochs to average"),
    ),
    "an average of adapters": (
        at("experiment", average_last=2),
        ("experiment: ", "average_last: the mean of adapters"),
    ),
    "an unknown kind": (at("experiment", kind="guess"), ("experiment: ", "'guess'", "'train a span model', ")),
    "an experiment of before": (at("experiment", kind=...), ("experiment: ", "without a kind; commit 93802ce is the")),
    "an ensemble that is trained": (at(experiment=ENSEMBLE | {"epochs": 3}), ("experiment.epochs: Extra inputs",)),
    "an ensemble that starts from a run": (
        at(experiment=ENSEMBLE | {"start_from": "c"}),
        ("experiment.start_from: Extra inputs",),
    ),
    "an ensemble and an average": (
        at(experiment=ENSEMBLE | {"mean_of": "both"}),
        ("experiment.mean_of: ", "'answers' or 'weights'"),
    ),
    "an ensemble of one": (at(experiment=ENSEMBLE | {"members": ["a"]}), ("experiment.members: ", "at least 2")),
    "an average of one run twice": (
        at(experiment=ENSEMBLE | {"mean_of": "weights", "members": ["a", "a"]}),
        ("experiment.members: ", "names a run twice"),
    ),
    "a member that leaves the folder": (
        at(experiment=ENSEMBLE | {"members": ["a", "../b"]}),
        ("experiment.members.1: ", "pattern"),
    ),
    "retrieval with an ensemble": (
        at(experiment=ENSEMBLE | {"retrieval": True}),
        ("experiment.retrieval: Extra inputs",),
    ),
    "written answers with targets": (
        at(experiment={"kind": "train a language model", "name": "tiny", "targets": "all"}),
        ("experiment.targets: Extra inputs",),
    ),
    "an unknown task": (
        at(experiment={"kind": "ask as it comes", "name": "tiny", "task": "guess"}),
        ("experiment.task: ", "'span' or 'generate'"),
    ),
    "training questions without a fingerprint": (at("fingerprints", train=None), ("fingerprints.train: is there if",)),
    "a fingerprint of training questions where there are none": (
        at(experiment={"kind": "ask as it comes", "name": "tiny"}),
        ("fingerprints.train: is there if and only if something is trained",),
    ),
    "an ancestor that is no run": (at(ancestors={"a": {"seed": 0}}), ("ancestors.a.experiment: Field required",)),
    "an ancestor of a bad name": (at(ancestors={"../a": {}}), ("ancestors", "pattern")),
    "retrieval that is no truth value": (at("experiment", retrieval=1), ("experiment.retrieval: ", "boolean")),
    "an empty model's name": (at("experiment", model=""), ("experiment.model: ", "at least 1")),
    "an experiment that is a list": (at(experiment=[]), ("experiment: ", "object")),
    "scores that are a list": (at(scores=[]), ("scores: ", "object")),
    "a percentage above 100": (at("scores", "all", "f1", value=100.1), ("scores.all.f1.value: ", "100")),
    "a percentage below 0": (at("scores", "all", "exact_match", low=-0.1), ("scores.all.exact_match.low: ", "0")),
    "a percentage as text": (at("scores", "all", "f1", high="87.5"), ("scores.all.f1.high: ", "number")),
    "a score that is not its questions' mean": (at("scores", "all", "f1", value=60.0), ("scores.all.f1: ", "55.56")),
    "a score that is one answer beside its questions' mean": (
        at("scores", "first", exact_match=interval(1, 1)),
        ("scores.first.exact_match: is not the mean of its questions, 50.00",),
    ),
    "a score of fewer questions": (at("scores", "all", questions=2), ("scores.all: are of 2 questions, not 3",)),
    "an interval without width": (
        at("scores", "all", "exact_match", low=33.33, high=33.33),
        ("scores.all.exact_match: the interval is not that of its questions, about 33.3 [",),
    ),
    "an interval of half the width": (
        at("scores", "first", "contained", low=25.0, high=75.0),
        ("scores.first.contained: the interval is not that of its questions, about 50.0 [",),
    ),
    "an interval beside its value": (at("scores", "first", "f1", low=60.0), ("not within its interval",)),
    "a question twice": (at("answers", id=["a", "b", "a"]), ("stands twice",)),
    "a larger validation set": (at(validation_size=4), ("3 questions were answered, and 4 asked",)),
    "a smaller validation set": (at(validation_size=2), ("3 questions were answered, and 2 asked",)),
    "a validation set of fewer than were asked": (at(validation_size=1), ("2 questions was asked of", "set of 1")),
    "no size of the validation set": (at(validation_size=...), ("validation_size: Field required",)),
    **{
        f"a device that {what}": (at("machine", device_name=name), ("machine.device_name: ", word))
        for what, name, word in (
            ("breaks a table", "x | <b>", "pattern"),
            ("is an image", "![x](//example.org/x.png)", "pattern"),
            ("is a link", "[x](//example.org)", "pattern"),
            ("is an address", "https://example.org", "link"),
            ("is an address without a scheme", "WWW.example.org", "link"),
            ("turns what follows round", "AMD \u202eCYPE", "pattern"),
            ("ends a line", "AMD\u2028EPYC", "pattern"),
            ("ends a paragraph", "AMD\u2029EPYC", "pattern"),
            ("holds what is not seen", "AMD\u200bEPYC", "pattern"),
            ("is code", "`x`", "pattern"),
        )
    },
    "data that clear the screen": (at("experiment", data="\x1b[2J"), ("experiment.data: ", "pattern")),
    "a machine without a name": (at("machine", device_name=...), ("machine.device_name: Field required",)),
    "a metric missing": (at("scores", "all", contained=...), ("scores.all.contained: Field required",)),
    "a loss that is no pair": (at(losses=[[10, 1.0], [20]]), ("losses.1",)),
    "a loss that is text": (at(losses=[[10, "low"]]), ("losses.0.1: ", "number")),
    "three numbers of parameters": (at(parameters=[1, 2, 3]), ("parameters: ", "2 items")),
    "negative parameters": (at(parameters=[-1, 2]), ("parameters.0: ",)),
    "more trained than there are": (at(parameters=[3, 2]), ("parameters: ", "3 of 2 were trained")),
    "losses in reverse": (at(losses=[[20, 0.5], [10, 1.25]]), ("losses: ", "do not go up at step 10")),
    "two losses of a step": (at(losses=[[10, 0.5], [10, 1.25]]), ("losses: ", "do not go up at step 10")),
    "a loss before the first step": (at(losses=[[0, 0.5]]), ("losses.0.0: ", "greater than or equal to 1")),
    "a loss below 0": (at(losses=[[10, -0.5]]), ("losses.0.1: ", "greater than or equal to 0")),
    "epochs in reverse": (
        at(epochs=[{"epoch": number, "train": PROBE, "eval": PROBE} for number in (3, 2, 1)]),
        ("epochs: ", "are not 1 to 3"),
    ),
    "an epoch less": (at(epochs=[{"epoch": 1, "train": PROBE, "eval": PROBE}]), ("epochs: ", "are not 1 to 3")),
    "text lost by a tokenizer that loses none": (at(defects=["lost-text"]), ("defects: ", "version of tokenizers")),
    "no text lost by a tokenizer that loses it": (
        at("machine", versions={"tokenizers": "0.23.2"}),
        ("defects: ", "version of tokenizers"),
    ),
    "negative bytes": (at(stored_bytes=-1), ("stored_bytes: ", "greater than or equal to 0")),
    "half a byte": (at(stored_bytes=0.5), ("stored_bytes: ", "integer")),
    "a rank beyond the passages": (at("answers", rank_after=[1, 5, 1]), ("passages: ", "beyond these 4")),
    "a former rank beyond the passages": (at("answers", rank_before=[5, 1, 1]), ("passages: ", "beyond these 4")),
    "a rank of 0": (at("answers", rank_before=[1, 0, 1]), ("rank_before.1: ", "greater than or equal to 1")),
    "half a rank": (at("answers", rank_after=[1, 1.5, 1]), ("rank_after: ", "of the type double, not int32")),
    "ranks before missing": (at("answers", rank_before=...), ("passages: retrieval was not measured as",)),
    "ranks without passages": (at(passages=None), ("passages: retrieval was not measured as",)),
    "no passages": (at(passages=0), ("passages: ", "greater than or equal to 1")),
    "retrieval that no experiment measures": (
        at("experiment", retrieval=False),
        ("passages: retrieval was not measured as the experiment says",),
    ),
    "a column missing": (at("answers", f1=...), ("answers.parquet: f1: Field required",)),
    "no ids of questions that the course does not know": (at("answers", id=...), ("id: Field required",)),
    "a column too many": (at("answers", note=["", "", ""]), ("note: is no column of a record",)),
    "a column of objects": (at("answers", id=[{"a": 1}] * 3), ("id: is of the type struct<a: int64>, not string",)),
    "an empty cell": (at("answers", prediction=["a", None, "b"]), ("prediction: holds a cell without a value",)),
    "an F1 above 1": (at("answers", f1=[0, 0, 1.5]), ("f1.2: ", "less than or equal to 1")),
    "a confidence below 0": (at("answers", confidence=[-0.1, 0, 1]), ("confidence.0: ",)),
    "a relation that there is not": (
        at("answers", relation=["but for articles", "banana", "overlap"]),
        ("answers.parquet: relation.1: Input should be 'equals the first answer'",),
    ),
    "a wrong answer made right": (
        at("answers", relation=["but for articles", "empty", "but for case"]),
        ("question 'c': the prediction '日本 😀", "cannot have the relation 'but for case' and an F1 of 0.6667"),
    ),
    "a right answer made wrong": (at("answers", relation=["elsewhere", "empty", "overlap"]), ("question 'a': ",)),
    "an empty answer made right": (
        at("answers", f1=[1, 1, 0.6667], relation=["but for articles", "but for case", "overlap"]),
        ("question 'b': ",),
    ),
    "an answer that is not empty": (at("answers", relation=["but for articles", "elsewhere", "overlap"]), ("'b': ",)),
    "an F1 that two words cannot have": (
        at("answers", f1=[1, 0, 0.99]),
        ("question 'c': ", "cannot have the relation 'holds an answer and more words' and an F1 of 0.99"),
    ),
    "a set of scores missing": (at("scores", first=...), ("scores: these are not of the experiment's evaluations",)),
    "negative seconds": (at("timing", train_seconds=-1), ("timing.train_seconds: ",)),
    "a fingerprint that is a number": (at("fingerprints", train=5), ("fingerprints.train: ", "string")),
    "a known fingerprint of other questions": (
        at("fingerprints", eval="591375b3c70d0190"),
        ("run.json: the file: ", "591375b3c70d0190 is of other questions of courseqa than are asked"),
    ),
    "a fingerprint that is none": (at("fingerprints", eval="[x](//example.org)"), ("fingerprints.eval: ", "pattern")),
    "a machine that is text": (at(machine="mine"), ("machine: ", "object")),
    "a lone surrogate": (at("machine", device_name="x\ud800"), (r"half a character, \ud800",)),
}


@pytest.mark.parametrize(("break_it", "words"), FAULTS.values(), ids=FAULTS)
def test_a_broken_record_gives_one_sentence_that_names_the_field(tmp_path, break_it, words):
    record = unshared()
    break_it(record)
    assert_refused(read_record, write_folder(tmp_path, record), words)


def assert_refused(read, path, words):
    with pytest.raises(RecordError) as caught:
        read(path)
    message = str(caught.value)
    named = [path] if path.is_file() else [path / name for name in FILES]
    assert message.startswith(tuple(f"{file}: " for file in named))
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    for word in words:
        assert word in message


BROKEN_CONTENTS = {
    "truncated": (json.dumps(VALID).encode()[:300], ("not valid JSON at line 1",)),
    "empty": (b"", ("not valid JSON",)),
    "not UTF-8": (json.dumps(VALID).encode("utf-16"), ("not UTF-8",)),
    "a list": ([VALID], ("the file: ", "object")),
    "a number": (5, ("the file: ", "object")),
    "NaN": (json.dumps(VALID).replace("1.25", "NaN").encode(), ("NaN",)),
    "a number that is infinite": (json.dumps(VALID).replace("1.25", "1e999").encode(), ("losses.0.1: ", "finite")),
    "nested 50,000 deep": (b"[" * 50_000, ("nested too deeply",)),
    "nested 150 deep": (b"[" * 150 + b"]" * 150, ("the file: ", "object")),
    "a machine nested 400 deep": (
        json.dumps(VALID).replace('"a processor"', "[" * 400 + "]" * 400).encode(),
        ("recursion",),
    ),
    "an integer of 5,000 digits": (json.dumps(VALID).replace("[10, 20]", "9" * 5000).encode(), ("digits",)),
    "an integer of 4,000 digits": (json.dumps(VALID).replace("[10, 20]", "9" * 4000).encode(), ("parameters: ",)),
}


@pytest.mark.parametrize(("content", "words"), BROKEN_CONTENTS.values(), ids=BROKEN_CONTENTS)
def test_a_file_of_another_kind_gives_one_sentence(tmp_path, content, words):
    write(tmp_path, content)
    assert_refused(read_record, tmp_path, words)


@pytest.mark.parametrize("read", [read_record, read_experiment])
@pytest.mark.parametrize("name", ["absent.json", "x" * 5000, "nul\0"])
def test_a_file_that_is_not_there_gives_one_sentence(read, name):
    with pytest.raises(RecordError, match="cannot be read") as caught:
        read(name)
    assert len(str(caught.value)) < 400


def test_an_experiment_alone_is_read_and_refused_alike(tmp_path):
    path = write(tmp_path, VALID["experiment"])
    assert read_experiment(path) == SpanTraining.model_validate(VALID["experiment"])
    assert_refused(read_experiment, write(tmp_path, VALID["experiment"] | {"epochs": -1}), ("epochs: ",))
    assert_refused(read_experiment, write(tmp_path, VALID), ("name: Field required",))


# ---- anything at all --------------------------------------------------------------------------------------------
def read_or_refuse(read, path):
    """What is accepted can be written and read again."""
    try:
        value = read(path)
    except RecordError as problem:
        named = [path] if path.is_file() else [path / name for name in FILES]
        assert str(problem).encode().startswith(tuple(f"{file}: ".encode() for file in named))  # noqa: PT017
        return
    if isinstance(value, Run):
        write_record(value, path)
        assert read_record(path) == value


@settings(max_examples=400)
@given(st.data())
def test_a_record_with_any_one_node_changed_is_read_or_refused(tmp_path_factory, data):
    path = data.draw(st.sampled_from(list(nodes(VALID))[1:]))
    changed = mutated(unshared(), path, data.draw(JSON), data.draw(st.booleans()))
    folder = write_folder(tmp_path_factory.mktemp("record"), changed)
    read_or_refuse(read_record, folder)
    if "experiment" in changed:
        read_or_refuse(read_experiment, write(folder, changed["experiment"], "any.json"))


@settings(max_examples=200)
@given(st.data())
def test_a_record_with_any_column_changed_is_read_or_refused(tmp_path_factory, data):
    path = data.draw(st.sampled_from(list(nodes(ANSWERS))[1:]))
    column = st.lists(st.text(max_size=3) | st.none(), min_size=3, max_size=3) | st.lists(
        st.floats(0, 1) | st.integers(-2, 5), min_size=3, max_size=3
    )
    value = data.draw(column if len(path) == 1 else st.sampled_from([value for c in ANSWERS.values() for value in c]))
    record = unshared() | {"answers": mutated(ANSWERS, path, value, len(path) == 1 and data.draw(st.booleans()))}
    folder = tmp_path_factory.mktemp("record")
    try:
        write_folder(folder, record)
    except (pa.ArrowException, TypeError):  # no column can hold these
        assume(False)
    read_or_refuse(read_record, folder)


@settings(max_examples=150)
@given(content=JSON | st.binary(max_size=80))
def test_any_json_and_any_bytes_are_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("record")
    write(folder, content)
    for read, path in ((read_record, folder), (read_experiment, folder / "run.json")):
        with pytest.raises(RecordError):
            read(path)


@settings(max_examples=300)
@given(st.data())
def test_a_record_with_any_byte_changed_is_read_or_refused(tmp_path_factory, data):
    folder = write_folder(tmp_path_factory.mktemp("record"), unshared())
    path = folder / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    read_or_refuse(read_record, folder)


# ---- evaluation sets and scores ---------------------------------------------------------------------------------
def test_evaluation_sets():
    assert EvalSet().indices(5) == [0, 1, 2, 3, 4]
    assert EvalSet(limit=3).indices(5) == [0, 1, 2]
    drawn = EvalSet(limit=30, sampling="random", seed=1).indices(100)
    assert len(set(drawn)) == 30
    assert EvalSet(limit=10, sampling="random", seed=1).indices(100) == drawn[:10]
    assert EvalSet(limit=30, sampling="random", seed=2).indices(100) != drawn
    assert sorted(EvalSet(sampling="random").indices(100)) == list(range(100))


def test_a_score_is_an_interval_to_two_decimals():
    score = Score.of(Interval(38.8349, 31.999, 45.6311))
    assert (score.value, score.low, score.high) == (38.83, 32.0, 45.63)
    assert str(score) == "38.8 [32.0, 45.6]"


def test_the_column_of_a_run_feeds_the_statistics(run):
    column = run.column("f1", "all")
    assert isinstance(column, np.ndarray)
    assert column.tolist() == [0.6667, 0.0, 1.0]


def test_the_mean_loss_of_some_steps_weighs_each_step_alike(run):
    """Losses were kept at steps 10 and 20 and, at the end of an epoch, at 22."""
    one = run.model_copy(update={"losses": [(10, 1.0), (20, 0.5), (22, 2.0)]})
    assert one.mean_loss(0, 10) == 1.0
    assert one.mean_loss(10, 22) == pytest.approx((10 * 0.5 + 2 * 2.0) / 12)
    assert one.mean_loss(0, 22) == pytest.approx((10 * 1.0 + 10 * 0.5 + 2 * 2.0) / 22)
    for first, last in [(0, 15), (5, 20), (10, 10), (20, 10), (0, 30)]:
        with pytest.raises(RecordError, match=f"'tiny' kept no mean loss from optimizer step {first} to {last}"):
            one.mean_loss(first, last)


def other_run(run, **columns):
    questions = run.questions.model_copy(update=columns)
    return run.model_copy(update={"questions": questions})


def test_two_runs_are_compared_on_the_questions_that_both_were_asked(run):
    other = other_run(run, id=["c", "x", "a"], relation=["but for case", "empty", "overlap"], f1=[0.1, 0.2, 0.3])
    first, second = paired_columns(run, other)
    assert first.tolist() == [1, 0]  # a and c, in the first run's order
    assert second.tolist() == [0, 1]
    assert [column.tolist() for column in paired_columns(run, other, "f1")] == [[1.0, 0.6667], [0.3, 0.1]]
    assert [column.tolist() for column in paired_columns(run, run)] == [[1, 0, 0]] * 2


def test_runs_that_were_asked_different_questions_are_not_compared(run):
    with pytest.raises(RecordError, match="share no question"):
        paired_columns(run, other_run(run, id=["x", "y", "z"]))
    fingerprints = run.fingerprints.model_copy(update={"eval": "another"})
    with pytest.raises(RecordError, match="were asked different questions"):
        paired_columns(run, run.model_copy(update={"fingerprints": fingerprints}))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.relative_to(FOLDER).as_posix())
def test_records_of_a_tokenizer_that_loses_text_are_marked(path):
    run = read_record(path)
    assert run.defects == (("lost-text",) if run.machine.versions.get("tokenizers") in ("0.23.1", "0.23.2") else ())


def test_the_unread_questions_are_of_squad_and_answered_worse_by_the_marked_runs():
    marked, sound = (read_record(FOLDER / part / "class-experiment1-2000-seed0") for part in (".", "cpu"))
    assert marked.unread == unread_ids() <= set(sound.questions.id)
    assert sound.unread == frozenset()
    unread = [i for i, id in enumerate(sound.questions.id) if id in unread_ids()]
    right = [int(np.asarray(run.questions.exact_match)[unread].sum()) for run in (marked, sound)]
    assert right[0] < right[1]


def test_what_only_one_of_two_runs_could_read_is_not_compared(run, monkeypatch):
    monkeypatch.setattr("qa_helpers.experiment.record.unread_ids", lambda defect: frozenset({"b"}))
    marked = run.model_copy(update={"defects": ("lost-text",)})
    assert run.questions.id == ["a", "b", "c"]
    for first, second in ((marked, run), (run, marked)):
        assert [column.tolist() for column in paired_columns(first, second)] == [[1, 0]] * 2
        assert [column.tolist() for column in paired_columns(first, second, evaluation="first")] == [[1]] * 2
    for first, second in ((marked, marked), (run, run)):
        assert [column.tolist() for column in paired_columns(first, second)] == [[1, 0, 0]] * 2


def test_the_report_says_once_which_runs_lost_text(run):
    marked = run.model_copy(update={"defects": ("lost-text",)})
    assert "loses text" not in format_report([run])
    report = format_report([run, marked, marked])
    assert report.count("loses text") == 1
    assert report.count("\\* |") == 2 * len(run.scores)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_the_ladder_of_a_record_reaches_its_exact_match(path):
    run = read_record(path)
    assert set(run.ladder) == set(run.scores)
    for name, scores in run.scores.items():
        steps = list(run.ladder[name].values())
        assert tuple(run.ladder[name]) == (*LADDER, REST)
        assert sum(steps) == scores.questions
        assert 100 * sum(steps[:5]) / scores.questions == pytest.approx(scores.exact_match.value, abs=0.006)
        assert 100 * sum(steps[:6]) / scores.questions == pytest.approx(scores.contained.value, abs=0.006)
        assert 100 * sum(steps[:2]) / scores.questions == pytest.approx(scores.string_equality.value, abs=0.006)


def test_recall_is_the_share_of_questions_whose_passage_is_near(run):
    """Ranks before are 1, 4, 2; after 1, 1, 3."""
    shares = {
        (when, most): run.retrieval.recall(when, most).value for when in ("before", "after") for most in (1, 2, 3, 4)
    }
    assert [shares["before", most] for most in (1, 2, 3, 4)] == [33.33, 66.67, 66.67, 100.0]
    assert [shares["after", most] for most in (1, 2, 3, 4)] == [66.67, 66.67, 100.0, 100.0]
    score = Retrieval(passages=9, before=[1] * 50 + [2] * 50, after=[9] * 100).recall("before", 1)
    assert score.value == 50
    assert score.low == pytest.approx(40, abs=1.5)  # 1.96 times the square root of 0.5 * 0.5 / 100
    assert score.high == pytest.approx(60, abs=1.5)


# ---- changing and showing ------------------------------------------------------------------------------------
def test_a_changed_experiment_is_another_one():
    old = SpanTraining(name="old", evaluations={"few": EvalSet(limit=4)}, learning_rate=1.5e-4)
    new = change(old, name="new", train_size=8, evaluations=old.evaluations | {"all": EvalSet()})
    assert new == SpanTraining(
        name="new",
        train_size=8,
        evaluations={"few": EvalSet(limit=4), "all": EvalSet()},
        learning_rate=1.5e-4,
    )
    assert (old.name, old.train_size) == ("old", None)
    combined = Combination(name="old", mean_of="answers", members=("a", "b"))
    assert change(combined, members=("b", "c")).members == ("b", "c")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": 0}, "the changed 'old': epochs: Input should be greater than or equal to 1"),
        ({"members": ("a", "b")}, "the changed 'old': members: Extra inputs are not permitted"),
        ({"epochs": "3"}, "epochs: Input should be a valid integer"),
        ({"epoch": 3}, "epoch: Extra inputs are not permitted"),
        ({"learning_rate": float("nan")}, "learning_rate: "),
        ({"learning_rate": object()}, "Unable to serialize unknown type"),
        ({"name": "My Experiment"}, "name: String should match pattern"),
        ({"average_last": 9}, "'old': its fields together: Value error, average_last: there are no 9 of 3 epochs"),
        ({"evaluations": {}}, "evaluations: "),
    ],
)
def test_a_change_that_does_not_fit_is_refused(fields, words):
    with pytest.raises(RecordError) as caught:
        change(SpanTraining(name="old"), **fields)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_is_shown_in_a_line(run):
    assert repr(run) == str(run)
    assert repr(run).startswith("<Run tiny: 16 of courseqa, 3 epochs, batch 8, ")
    assert f"; first: EM {run.scores['first'].exact_match}, F1 {run.scores['first'].f1}" in repr(run)
    for path in (Path(__file__).parents[2] / "records").glob("*/run.json"):
        assert len(repr(read_record(path))) < 600


def test_a_part_of_a_record_is_shown_but_not_for_pages(run):
    assert repr(run.scores["first"].f1) == repr(run.scores["first"].f1)[:200]
    long = Retrieval(passages=9, before=[1] * 5_000, after=[1] * 5_000)
    assert repr(long).startswith("Retrieval(passages=9, before=[1, 1, ")
    assert len(repr(long)) < 1_600


# ---- the report -------------------------------------------------------------------------------------------------
def test_the_report_has_a_line_an_evaluation_set(run):
    lines = format_report([run, run]).splitlines()
    assert len(lines) == 2 + 2 * 2
    assert {line.count("|") for line in lines} == {9}
    assert (
        "| tiny | 16 of courseqa, 3 epochs, batch 8, trainable: lora, learning rate: 0.0005 | first (2) |" in lines[2]
    )


FIRST = {"first": EvalSet(limit=2)}


def combination(mean_of, members):
    return Combination(name="tiny", evaluations=FIRST, mean_of=mean_of, members=tuple(members))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainable": "all", "learning_rate": 1e-4}, "16 of courseqa, 3 epochs, batch 8"),
        (
            {"trainable": "last:2", "train_size": None},
            "all of courseqa, 3 epochs, batch 8, trainable: last:2, learning rate: 0.0005",
        ),
        (
            {"trainable": "all", "schedule": "cosine", "warmup": 0.1, "layer_decay": 0.9, "per_passage": 2, "seed": 3},
            "16 of courseqa, 3 epochs, batch 8, per passage: 2, learning rate: 0.0005, schedule: cosine, warmup: 0.1, "
            "layer decay: 0.9",
        ),
        (
            {"trainable": "all", "start_from": "cloze", "label_smoothing": 0.1, "targets": "all", "sampling": "random"},
            "16 of courseqa, 3 epochs, batch 8, start from: cloze, sampling: random, learning rate: 0.0005, "
            "label smoothing: 0.1, targets: all",
        ),
        (
            {"trainable": "all", "questions": "cloze", "train_size": None, "epochs": 1},
            "all cloze questions of courseqa, 1 epoch, batch 8, learning rate: 0.0005",
        ),
        (combination("answers", "ab"), "nothing: the mean answers of a, b"),
        (combination("weights", "abc"), "nothing: the mean weights of a, b, c"),
        (combination("answers", "abcd"), "nothing: the mean answers of 4 runs"),
        (AsItComes(name="tiny", evaluations=FIRST), "nothing: minilm as it comes"),
        (AsItComes(name="tiny", evaluations=FIRST, model="smollm2", task="generate"), "nothing: smollm2 as it comes"),
        (AsItComes(name="tiny", evaluations=FIRST, start_from="another"), "nothing: another as it comes"),
    ],
)
def test_the_report_says_what_was_trained(run, changes, words):
    experiment = change(run.experiment, retrieval=False, **changes) if isinstance(changes, dict) else changes
    assert f"| tiny | {words} | first (2) |" in format_report([run.model_copy(update={"experiment": experiment})])


@pytest.mark.parametrize(
    ("speed", "epochs", "words"),
    [(14.3, 3, "60 s, 14 questions/s"), (0.4, 3, "60 s, 0.4 questions/s"), (0.0, 0, "–")],
)
def test_the_report_says_how_fast_was_trained_if_at_all(run, speed, epochs, words):
    timing = run.timing.model_copy(update={"train_seconds": 60.2, "train_questions_per_second": speed})
    experiment = change(run.experiment, epochs=epochs) if epochs else AsItComes(name="tiny", evaluations=FIRST)
    line = format_report([run.model_copy(update={"timing": timing, "experiment": experiment})]).splitlines()[2]
    assert line.split(" | ")[-2] == words


def test_the_report_does_not_time_a_run_that_was_resumed(run):
    timing = run.timing.model_copy(update={"resumed": True})
    assert "| resumed, not timed |" in format_report([run.model_copy(update={"timing": timing})])
    assert "resumed" not in format_report([run])


def test_the_report_is_put_between_the_marks_and_only_there(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("above\n<!-- report -->\nold\n<!-- /report -->\nbelow\n")
    replace_report(path, "| new |")
    replace_report(path, "| newer |")
    assert path.read_text() == "above\n<!-- report -->\n| newer |\n<!-- /report -->\nbelow\n"


@pytest.mark.parametrize("text", ["", "<!-- report -->", "<!-- /report -->\n<!-- report -->"])
def test_a_page_without_the_marks_is_left_alone(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"page\.md: has no line"):
        replace_report(path, "| new |")
    assert path.read_text() == text
