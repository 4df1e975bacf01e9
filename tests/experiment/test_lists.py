"""Lists of experiments: read, refused, and in an order in which they can be run."""

import json
import os
from pathlib import Path

import pytest

from qa_helpers.__main__ import main
from qa_helpers.experiment.catalogue import named_experiments
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.lists import check_starts, read_experiments
from qa_helpers.experiment.spec import AsItComes, Combination, EvalSet, SpanTraining, change
from qa_helpers.experiment.sweep import run_sweep

TINY = SpanTraining(
    name="tiny", train_size=16, trainable="last:1", epochs=1, probe_size=2, evaluations={"few": EvalSet(limit=8)}
)


def write_list(path, experiments):
    path.write_text(json.dumps([item if isinstance(item, str) else item.model_dump() for item in experiments]))
    return path


def test_a_list_holds_experiments_and_names_of_experiments(tmp_path):
    one = write_list(tmp_path / "one.json", [TINY, "start-here"])
    other = write_list(tmp_path / "other.json", [change(TINY, name="warm", start_from="tiny")])
    assert read_experiments([one, other]) == [
        TINY,
        named_experiments()["start-here"],
        change(TINY, name="warm", start_from="tiny"),
    ]


def test_a_pattern_stands_for_the_named_experiments_that_match_it():
    named = named_experiments()
    found = read_experiments(["class-experiment?-*", "start-here"])
    assert [one.name for one in found] == [*(n for n in named if n.startswith("class-experiment")), "start-here"]
    assert found[0] == named["class-experiment1-2000-seed0"]
    assert len(found) == 7
    with pytest.raises(RecordError, match="no experiment has a name like 'clas-'; run --list shows the names"):
        read_experiments(["clas-"])
    with pytest.raises(RecordError, match=r"no\. 1: name: 'start-here' is taken"):
        read_experiments(["start-here", "start-*"])


def test_what_another_experiment_starts_from_is_named_before_it():
    """So that a pattern that matches both runs them in order."""
    check_starts(list(named_experiments().values()), Path("no-such-folder"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "sweep.json: is not valid JSON at line 1"),
        ("[NaN]", "sweep.json: holds NaN"),
        ('{"name": "a"}', "sweep.json: is no list of experiments"),
        ("[]", "sweep.json: is no list of experiments"),
        ("7", "sweep.json: is no list of experiments"),
        ('["no-such"]', "sweep.json: no. 1: there is no experiment 'no-such'; run --list shows"),
        ('["start-here", 7]', "sweep.json: no. 2: is neither an experiment"),
        ("[null]", "sweep.json: no. 1: is neither an experiment"),
        ('[["start-here"]]', "sweep.json: no. 1: is neither an experiment"),
        ("[{}]", "sweep.json: no. 1: name: Field required"),
        ('["start-here", {"name": "a", "epochs": "3"}]', "sweep.json: no. 2: epochs: Input should be"),
        ('[{"name": "a", "epoch": 3}]', "sweep.json: no. 1: epoch: Extra inputs"),
        ('[{"name": "a", "evaluations": {"x": {"limit": 0}}}]', "sweep.json: no. 1: evaluations.x.limit: "),
        ('[{"name": "a", "start_from": "../b"}]', "sweep.json: no. 1: start_from: String should match"),
        (
            '[{"kind": "train a language model", "name": "a", "retrieval": true}]',
            "sweep.json: no. 1: retrieval: Extra inputs",
        ),
        ('[{"kind": "train", "name": "a"}]', "sweep.json: no. 1: the file: Input tag 'train' found using 'kind' does"),
        ('[{"name": "a", "task": "span"}]', "sweep.json: no. 1: the file: is an experiment of before"),
        ('[{"name": "a"}, {"name": "b"}, {"name": "a"}]', "no. 3: name: 'a' is taken (sweep.json: no. 1)"),
        ('["start-here", {"name": "start-here"}]', "no. 2: name: 'start-here' is taken (sweep.json: no. 1)"),
        ('[{"name": "a", "data": ' + "[" * 500 + "]" * 500 + "}]", "sweep.json: "),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    Path("sweep.json").write_text(text)
    assert main(["sweep", "sweep.json", "--folder", "runs"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert os.listdir() == ["sweep.json"]


def test_a_name_that_another_file_has_is_refused(tmp_path):
    one, other = write_list(tmp_path / "one.json", [TINY]), write_list(tmp_path / "other.json", ["start-here", TINY])
    with pytest.raises(RecordError, match=r"other\.json: no\. 2: name: 'tiny' is taken \(.*one\.json: no\. 1\)"):
        read_experiments([one, other])


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ({"a": "b", "b": None}, "no. 1 of the list: 'a' starts from 'b', which is neither earlier"),
        ({"a": None, "b": "b"}, "no. 2 of the list: 'b' starts from 'b', which is neither earlier"),
        ({"a": "b", "b": "a"}, "no. 1 of the list"),
        ({"a": "absent"}, "'a' starts from 'absent', which is neither earlier in the list nor finished in"),
        ({"asked": None, "b": "asked"}, "'b' starts from 'asked', which trains nothing to start from"),
    ],
)
def test_what_a_run_starts_from_comes_earlier_or_is_finished(tmp_path, starts, words):
    experiments = [
        AsItComes(name=name) if name == "asked" else change(TINY, name=name, start_from=start)
        for name, start in starts.items()
    ]
    with pytest.raises(RecordError) as caught:
        run_sweep(experiments, tmp_path / "runs")
    assert words in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_may_be_started_from(finished):
    folder, _ = finished
    check_starts([change(TINY, start_from="finished")], folder)


def test_what_a_run_combines_comes_earlier_or_is_finished_too(tmp_path):
    members = [change(TINY, name="a"), change(TINY, name="b")]
    both = Combination(name="both", mean_of="answers", members=("a", "b"))
    check_starts([*members, both, Combination(name="all", mean_of="weights", members=("both", "a"))], tmp_path)
    with pytest.raises(RecordError, match=r"no\. 2 of the list: 'both' starts from 'b', which is neither earlier"):
        check_starts([members[0], both, members[1]], tmp_path)
