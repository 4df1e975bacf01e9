"""Data sets by name: sampling, splits, no network; the fingerprint of their rows."""

import copy
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_squad import CONTEXT, ROW, valid, write

from qa_helpers.data.rows import DataError
from qa_helpers.data.squad import ASSETS, find_file, fingerprint, load_qa, sample_indices
from qa_helpers.data.squad_file import read_squad_file


def ids(*args, **kwargs):
    return load_qa(*args, **kwargs)["id"]


def test_courseqa_comes_with_the_package_as_squads_columns():
    data = load_qa()
    assert set(data.column_names) == {"id", "title", "context", "question", "answers"}
    assert len(data) == 622
    assert len(load_qa("courseqa", "validation")) == 206
    assert data[0] == read_squad_file(ASSETS / "courseqa" / "train.json")[0]


def test_first_takes_the_files_order():
    assert ids(limit=30) == ids()[:30]


def test_random_draws_without_replacement_are_nested_and_decided_by_the_seed():
    small, large = ids(limit=30, sampling="random"), ids(limit=200, sampling="random")
    assert large[:30] == small
    assert len(set(large)) == 200
    assert set(large) <= set(ids())
    assert small == ids(limit=30, sampling="random")
    assert small != ids(limit=30, sampling="random", seed=1)
    assert small != ids(limit=30)
    assert sorted(ids(limit=622, sampling="random")) == sorted(ids())


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.data())
def test_draws_are_nested_whatever_the_sizes(size, seed, data):
    large = data.draw(st.integers(1, size))
    small = data.draw(st.integers(1, large))
    drawn = sample_indices(size, large, seed)
    assert len(set(drawn)) == large
    assert set(drawn) <= set(range(size))
    assert sample_indices(size, small, seed) == drawn[:small]


@pytest.mark.parametrize("sampling", ["first", "random"])
@pytest.mark.parametrize("most", [1, 2, 100])
def test_at_most_so_many_questions_of_a_passage_in_the_order_of_the_sampling(sampling, most):
    order = load_qa(limit=622, sampling=sampling)
    expected, taken = [], {}
    for id, passage in zip(order["id"], order["context"], strict=True):
        taken[passage] = taken.get(passage, 0) + 1
        if taken[passage] <= most:
            expected.append(id)
    spread = load_qa(sampling=sampling, per_passage=most)
    assert spread["id"] == expected
    assert max(Counter(spread["context"]).values()) <= most
    assert load_qa(limit=50, sampling=sampling, per_passage=most)["id"] == expected[:50]
    passages = set(load_qa(limit=50, sampling=sampling)["context"])
    assert len(set(spread["context"][:50])) >= len(passages)
    assert len(expected) == {1: 90, 2: 180, 100: 622}[most]


def test_too_few_passages_and_less_than_one_question_of_each_are_errors():
    with pytest.raises(DataError, match=r"^91 questions were asked of 'courseqa', which holds 90 here with at most 1"):
        load_qa(limit=91, per_passage=1)
    with pytest.raises(DataError, match="0 questions of a passage at most leave none"):
        load_qa(per_passage=0)


@pytest.mark.parametrize("limit", [0, -1, 623, 10**30])
@pytest.mark.parametrize("sampling", ["first", "random"])
def test_a_limit_that_cannot_be_met_is_an_error(limit, sampling):
    with pytest.raises(DataError, match=f"^{limit} questions were asked of 'courseqa', which holds 622"):
        load_qa(limit=limit, sampling=sampling)


def test_limits_of_one_and_of_all():
    assert len(load_qa(limit=1)) == 1
    assert len(load_qa(limit=622)) == 622


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "test"}, "no split 'test'"),
        ({"sampling": "last"}, "no sampling 'last'"),
        ({"name": "squad2"}, "no data set 'squad2': use 'courseqa', 'squad', a folder"),
        ({"name": "nul\0"}, "no data set"),
        ({"name": "x" * 5000}, "xxx…'"),
        ({"name": "../absent.json"}, "no data set '../absent.json'"),
    ],
)
def test_unknown_names_say_what_there_is(options, words):
    with pytest.raises(DataError) as caught:
        load_qa(**options)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_single_file_has_no_splits(tmp_path):
    path = write(tmp_path, valid())
    assert ids(str(path)) == ["q1", "q2", "q3"]
    with pytest.raises(DataError, match=r"data\.json: a single file has no split 'validation'"):
        load_qa(str(path), "validation")


@pytest.mark.parametrize("names", [("train.json", "dev.json"), ("train-v1.1.json", "dev-v1.1.json")])
def test_a_folder_has_splits(tmp_path, names):
    write(tmp_path, valid(), names[0])
    small = valid()
    del small["data"][0]
    write(tmp_path, small, names[1])
    assert ids(str(tmp_path), "train") == ids(str(tmp_path)) == ["q1", "q2", "q3"]
    assert ids(str(tmp_path), "validation") == ["q3"]


def test_a_folder_without_the_splits_file_says_so(tmp_path):
    write(tmp_path, valid(), "train.json")
    with pytest.raises(DataError, match=r"holds no dev-v1\.1\.json or dev\.json; put the file there") as caught:
        load_qa(str(tmp_path), "validation")
    assert str(tmp_path) in str(caught.value)


def test_squad_is_read_from_the_folder_that_the_variable_names(tmp_path, monkeypatch):
    monkeypatch.setenv("QA_DATA_DIR", str(tmp_path))
    (tmp_path / "squad").mkdir()
    write(tmp_path / "squad", valid(), "train-v1.1.json")
    assert ids("squad") == ["q1", "q2", "q3"]
    with pytest.raises(DataError, match=r"holds no dev-v1\.1\.json .* unset QA_DATA_DIR") as caught:
        load_qa("squad", "validation")
    assert str(tmp_path / "squad") in str(caught.value)


@pytest.mark.parametrize("folder", ["/absent", "x" * 5000])
def test_a_variable_that_names_no_folder_is_an_error_and_not_a_download(monkeypatch, folder):
    monkeypatch.setenv("QA_DATA_DIR", folder)
    with pytest.raises(DataError, match="unset QA_DATA_DIR") as caught:
        load_qa("squad")
    assert folder[:100] in str(caught.value)
    assert len(str(caught.value)) < 500


def test_broken_data_are_refused_by_load_qa_too(tmp_path):
    with pytest.raises(DataError, match="not valid JSON"):
        load_qa(str(write(tmp_path, b"{")))


def test_without_network_squad_gives_one_sentence_fast(tmp_path):
    """In a fresh interpreter with an empty cache, in which any use of a socket is an error of its own."""
    program = """
        import socket, sys, time

        def touched(*args, **kwargs):
            print("network touched", args[-1:], flush=True)
            raise AssertionError("network touched")

        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = touched
        import datasets
        from qa_helpers.data.rows import DataError
        from qa_helpers.data.squad import load_qa

        begin = time.monotonic()
        try:
            load_qa("squad", "validation", limit=5)
        except DataError as problem:
            print(problem)
        print(time.monotonic() - begin)
    """
    environment = {key: value for key, value in os.environ.items() if key != "QA_DATA_DIR"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "network touched" not in result.stdout + result.stderr
    sentence, seconds = result.stdout.splitlines()
    assert "HF_HUB_OFFLINE is set" in sentence
    assert "set QA_DATA_DIR to a folder that holds squad/train-v1.1.json" in sentence
    assert float(seconds) < 30  # nothing is tried again and waited for; a busy machine took 7 seconds without that


def test_find_file_leaves_squad_to_the_hub_without_the_variable(monkeypatch):
    monkeypatch.delenv("QA_DATA_DIR", raising=False)
    assert find_file("squad", "train") is None
    assert find_file("courseqa", "validation") == ASSETS / "courseqa" / "dev.json"


@pytest.mark.skipif("QA_DATA_DIR" not in os.environ, reason="QA_DATA_DIR names no folder with SQuAD")
def test_squad_itself():
    data = load_qa("squad", "validation")
    assert len(data) == 10_570
    assert data[53]["question"] == "Who did the Panthers beat to become the NFC champs?"
    assert set(data["title"][:810]) == {"Super_Bowl_50"}
    assert data["title"][810] != "Super_Bowl_50"


# ---- fingerprint ------------------------------------------------------------------------------------------------
def changed(**fields):
    return [{**copy.deepcopy(ROW), **fields}, {**copy.deepcopy(ROW), "id": "q2"}]


CHANGES = {
    "id": changed(id="q9"),
    "context": changed(context=CONTEXT + " "),
    "question": changed(question="who won?"),
    "an answer's text": changed(answers={"text": ["Arizona Cardinals", "Cardinal"], "answer_start": [4, 12]}),
    "an answer's place": changed(answers={"text": ["Arizona Cardinals", "Cardinals"], "answer_start": [4, 13]}),
    "the answers' order": changed(answers={"text": ["Cardinals", "Arizona Cardinals"], "answer_start": [12, 4]}),
    "an answer less": changed(answers={"text": ["Arizona Cardinals"], "answer_start": [4]}),
    "the order": changed()[::-1],
    "a question less": changed()[:1],
}


def test_the_fingerprint_changes_with_everything_that_decides_a_result():
    prints = {name: fingerprint(rows) for name, rows in CHANGES.items()} | {"unchanged": fingerprint(changed())}
    assert len(set(prints.values())) == len(prints), prints
    assert all(len(print_) == 16 and int(print_, 16) for print_ in prints.values())


def test_the_fingerprint_is_the_same_however_the_rows_are_held():
    assert fingerprint(load_qa(limit=20)) == fingerprint(read_squad_file(ASSETS / "courseqa" / "train.json")[:20])


def test_the_fingerprint_does_not_depend_on_the_title():
    """It is no part of what a model reads; a Hub copy and a file may spell it differently."""
    assert fingerprint(changed(title="Super Bowl")) == fingerprint(changed())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=2), st.integers(0, 5))
def test_the_fingerprint_keeps_fields_apart(texts, cut):
    """Text that moves from one field to the next changes it."""
    whole = "".join(texts)
    a = changed(context=whole[:cut], question=whole[cut:])
    b = changed(context=texts[0], question=texts[1])
    same = (a[0]["context"], a[0]["question"]) == (b[0]["context"], b[0]["question"])
    assert (fingerprint(a) == fingerprint(b)) == same


def test_paths_may_be_given_as_path_objects(tmp_path):
    assert len(read_squad_file(Path(write(tmp_path, valid())))) == 3
