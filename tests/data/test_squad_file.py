"""Files in SQuAD's form: whole ones are read, broken ones refused with one sentence that names the place."""

import gzip
import json
import subprocess
import sys

import pytest
from any_json import JSON, mutated, nodes
from hypothesis import given, settings
from hypothesis import strategies as st
from small_squad import CONTEXT, ROW, valid, write

from qa_helpers.common import device, io
from qa_helpers.data.rows import DataError
from qa_helpers.data.squad import load_qa
from qa_helpers.data.squad_file import read_squad_file


def test_a_valid_file_is_read_in_order_with_every_answer(tmp_path):
    rows = read_squad_file(write(tmp_path, valid()))
    assert rows[0] == ROW
    assert [(row["id"], row["title"]) for row in rows] == [("q1", "Bowl"), ("q2", "Bowl"), ("q3", "Späte")]
    for row in rows:
        for text, start in zip(*row["answers"].values(), strict=True):
            assert row["context"][start : start + len(text)] == text


# ---- broken files -----------------------------------------------------------------------------------------------
QA = "data[0] 'Bowl' paragraphs[0] qas[1] 'q2'"  # where most faults below are planted


def article(file):
    return file["data"][0]


def paragraph(file):
    return article(file)["paragraphs"][0]


def qa(file):
    return paragraph(file)["qas"][1]


def an_answer(file):
    return qa(file)["answers"][0]


FAULTS = {  # what is wrong: (how it comes about, what the message must say)
    "no data": (lambda f: f.pop("data"), ("data: Field required",)),
    "data is an object": (lambda f: f.update(data={}), ("data: ", "list")),
    "an article is a list": (lambda f: f.update(data=[[]]), ("data[0]: ", "dictionary")),
    "an article is null": (lambda f: f["data"].append(None), ("data[2]: ", "dictionary")),
    "title missing": (lambda f: article(f).pop("title"), ("data[0] title: Field required",)),
    "title a number": (lambda f: article(f).update(title=5), ("data[0] title: ", "string")),
    "paragraphs missing": (lambda f: article(f).pop("paragraphs"), ("data[0] 'Bowl' paragraphs: Field required",)),
    "context missing": (lambda f: paragraph(f).pop("context"), ("data[0] 'Bowl' paragraphs[0] context: ", "required")),
    "context empty": (lambda f: paragraph(f).update(context=""), ("paragraphs[0] context: ", "at least 1 character")),
    "context a list": (lambda f: paragraph(f).update(context=["x"]), ("paragraphs[0] context: ", "string")),
    "qas an object": (lambda f: paragraph(f).update(qas={}), ("paragraphs[0] qas: ", "list")),
    "question missing": (lambda f: qa(f).pop("question"), (f"{QA} question: Field required",)),
    "question empty": (lambda f: qa(f).update(question=""), (f"{QA} question: ", "at least 1 character")),
    "id missing": (lambda f: qa(f).pop("id"), ("'Bowl' paragraphs[0] qas[1] id: Field required",)),
    "id a number": (lambda f: qa(f).update(id=17), ("qas[1] id: ", "string")),
    "id empty": (lambda f: qa(f).update(id=""), ("id: ", "at least 1 character")),
    "id used twice": (
        lambda f: f["data"][1]["paragraphs"][0]["qas"][0].update(id="q1"),
        ("article 'Späte', question 'q1'", "twice"),
    ),
    "answers missing": (lambda f: qa(f).pop("answers"), (f"{QA} answers: Field required",)),
    "answers in the table's form": (
        lambda f: qa(f).update(answers={"text": ["49 to 15"], "answer_start": [39]}),
        (f"{QA} answers: ", "list"),
    ),
    "SQuAD 2.0's unanswerable question": (
        lambda f: qa(f).update(answers=[], is_impossible=True),
        (f"{QA} answers: ", "has no answer, as some of SQuAD 2.0's", "leave such questions out"),
    ),
    "SQuAD 2.0's question with a plausible answer": (
        lambda f: qa(f).update(is_impossible=True),
        (f"{QA} is_impossible: ", "SQuAD 2.0", "leave such questions out"),
    ),
    "answer of white space": (
        lambda f: an_answer(f).update(text=" ", answer_start=CONTEXT.index(" ")),
        ("article 'Bowl', question 'q2'", "the answer ' ' holds nothing that can be seen"),
    ),
    "question of white space": (lambda f: qa(f).update(question=" \u200b"), ("'q2'", "the question is empty")),
    "a space that only looks like the answer's": (
        lambda f: paragraph(f).update(context=CONTEXT.replace("49 to", "49\u00a0to")),
        ("question 'q2'", r"points at '49\xa0to 15'", "U+00A0 NO-BREAK SPACE there, U+0020 SPACE in the answer"),
    ),
    "a soft hyphen in the context": (
        lambda f: paragraph(f).update(context=CONTEXT.replace("49 to", "4\u00ad9 to")),
        ("question 'q2'", "U+00AD SOFT HYPHEN there, U+0039 DIGIT NINE in the answer", "copy the answer"),
    ),
    "a decomposed accent in the answer": (
        lambda f: [
            paragraph(f).update(context=CONTEXT + " Zoë"),
            an_answer(f).update(text="Zoe\u0308", answer_start=len(CONTEXT) + 1),
        ],
        ("question 'q2'", "the answer is written with decomposed accents (U+00EB", "unicodedata.normalize('NFC'"),
    ),
    "a decomposed accent in the context": (
        lambda f: [
            paragraph(f).update(context=CONTEXT + " Zoe\u0308"),
            an_answer(f).update(text="Zoë", answer_start=len(CONTEXT) + 1),
        ],
        ("question 'q2'", "the context is written with decomposed accents"),
    ),
    "flat rows": (lambda f: f.update(data=[ROW]), ("data[0] is a flat row", '{"data": [{"title", "paragraphs"')),
    "a flat row among articles": (lambda f: f["data"].append(ROW), ("data[2] is a flat row",)),
    "answer a string": (lambda f: qa(f).update(answers=["49"]), (f"{QA} answers[0]: ", "dictionary")),
    "answer's text missing": (lambda f: an_answer(f).pop("text"), (f"{QA} answers[0] text: Field required",)),
    "answer's text null": (lambda f: an_answer(f).update(text=None), (f"{QA} answers[0] text: ", "string")),
    "answer empty": (lambda f: an_answer(f).update(text=""), (f"{QA} answers[0] text: ", "at least 1 character")),
    "offset missing": (lambda f: an_answer(f).pop("answer_start"), (f"{QA} answers[0] answer_start: ", "required")),
    "offset a string": (lambda f: an_answer(f).update(answer_start="38"), (f"{QA} answers[0] answer_start: ", "int")),
    "offset a fraction": (lambda f: an_answer(f).update(answer_start=38.0), ("answer_start: ", "int")),
    "offset true": (lambda f: an_answer(f).update(answer_start=True), ("answer_start: ", "int")),
    "offset negative": (lambda f: an_answer(f).update(answer_start=-1), ("answer_start: ", "greater than or equal")),
    "offset off by one": (
        lambda f: an_answer(f).update(answer_start=CONTEXT.index("49") + 1),
        ("article 'Bowl', question 'q2'", "points at '9 to 15.'", "not at the answer '49 to 15'"),
    ),
    "offset counted in UTF-16, as JavaScript does": (
        lambda f: an_answer(f).update(answer_start=len(CONTEXT[: CONTEXT.index("49")].encode("utf-16-le")) // 2),
        ("question 'q2'", "points at '9 to 15.'"),
    ),
    "offset past the end": (
        lambda f: an_answer(f).update(answer_start=5000),
        ("article 'Bowl', question 'q2'", "at 5000 ends past the context's"),
    ),
    "an integer of 400 digits": (lambda f: an_answer(f).update(answer_start=10**400), ("question 'q2'", "past")),
    "answer in other case": (
        lambda f: an_answer(f).update(text="49 TO 15"),
        ("question 'q2'", "not at the answer '49 TO 15'"),
    ),
    "answer of 5,000 characters": (lambda f: an_answer(f).update(text="x" * 5000), ("question 'q2'", "x…' at")),
    "no articles": (lambda f: f.update(data=[]), ("holds no question",)),
    "no questions": (lambda f: [p.update(qas=[]) for a in f["data"] for p in a["paragraphs"]], ("no question",)),
}


@pytest.mark.parametrize(("break_it", "words"), FAULTS.values(), ids=FAULTS)
def test_a_broken_file_gives_one_sentence_that_names_the_place(tmp_path, break_it, words):
    file = valid()
    break_it(file)
    assert file != valid()
    assert_refused(write(tmp_path, file), words)


def assert_refused(path, words):
    with pytest.raises(DataError) as caught:
        read_squad_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    for word in words:
        assert word in message


BROKEN_CONTENTS = {
    "truncated": (json.dumps(valid()).encode()[:200], ("not valid JSON at line 1",)),
    "empty": (b"", ("not valid JSON",)),
    "UTF-16": (json.dumps(valid(), ensure_ascii=False).encode("utf-16"), ("not UTF-8",)),
    "Latin-1": (json.dumps(valid(), ensure_ascii=False).encode("latin-1", "ignore"), ("not UTF-8",)),
    "a list": ([valid()], ("holds a list at its top; write it as", '{"data": [{"title", "paragraphs"')),
    "flat rows in a list": ([ROW, ROW], ("holds a list at its top; write it as", '{"data": [{"title"')),
    "JSON Lines": (f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n".encode(), ("seems to be JSON Lines", "line 2", '{"data"')),
    "gzip": (gzip.compress(json.dumps(valid()).encode()), ("is compressed with gzip; unpack it first",)),
    "a string": ("data", ("the file: ", "dictionary")),
    "null": (None, ("the file: ", "dictionary")),
    "NaN as an offset": (json.dumps(valid()).replace("12}", "NaN}").encode(), ("NaN",)),
    "nested 50,000 deep": (b'{"data": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", ("nested too deeply",)),
    "nested 400 deep": (b'{"data": ' + b"[" * 400 + b"]" * 400 + b"}", ("data[0]: ", "dictionary")),
    "a lone surrogate as a title": (json.dumps(valid()).replace("Bowl", r"\ud800").encode(), (r"\ud800",)),
    "an integer of 5,000 digits": (json.dumps(valid()).replace("12}", "9" * 5000 + "}").encode(), ("digits",)),
}


@pytest.mark.parametrize(("content", "words"), BROKEN_CONTENTS.values(), ids=BROKEN_CONTENTS)
def test_a_file_of_another_kind_gives_one_sentence(tmp_path, content, words):
    assert_refused(write(tmp_path, content), words)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = write(tmp_path, valid())
    with open(path, "r+b") as file:
        file.truncate(io.MOST_BYTES + 1)  # takes no space on the disk
    monkeypatch.setattr(io.json, "loads", lambda *_args, **_options: pytest.fail("it was read"))
    assert_refused(path, ("has 300 MB, more than the 300 MB that are read at most; use a part",))


MEASURE = """
import sys
from qa_helpers.data.squad import load_qa
from qa_helpers.common.device import peak_memory_mib, reset_peak_memory

load_qa()  # what the libraries take
reset_peak_memory()
before = peak_memory_mib()
count = len(load_qa(sys.argv[1]))
print(count, peak_memory_mib() - before)
"""


@pytest.mark.benchmark
@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_memory_grows_by_less_than_nine_times_the_files_size(tmp_path):
    words = [f"word{number}" for number in range(100)]
    context, questions = " ".join(words), 0
    data = []
    for number in range(1000):
        qas = []
        for place in range(100):
            answer = {"text": words[place], "answer_start": context.index(words[place])}
            qas.append({"id": f"{number}-{place}-{'x' * 20}", "question": "Which word? " * 5, "answers": [answer]})
        questions += len(qas)
        sections = [{"context": f"{context} {number} {part}", "qas": qas[part::20]} for part in range(20)]
        data.append({"title": f"Article {number}", "paragraphs": sections})
    path = write(tmp_path, {"data": data})
    program = [sys.executable, "-c", MEASURE, str(path)]
    count, mib = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True).stdout.split()
    assert int(count) == questions == 100_000
    assert float(mib) * 2**20 < 9 * path.stat().st_size + 150e6  # of these, a small file takes 70 MB


def test_a_slow_file_shows_how_far_it_is(tmp_path, monkeypatch):
    bars = []

    def bar(items, **options):
        bars.append((len(items), options["unit"], options["delay"]))
        return items

    monkeypatch.setattr(device, "progress_bar", bar)
    assert len(load_qa(str(write(tmp_path, valid())))) == 3
    assert bars == [(2, "article", 1), (1, "part", 1)]


def test_a_folder_instead_of_a_file_gives_one_sentence(tmp_path):
    assert_refused(tmp_path, ("cannot be read", "directory"))


# ---- anything at all --------------------------------------------------------------------------------------------
def read_or_refuse(folder, content):
    path = write(folder, content, "any.json")
    try:
        rows = read_squad_file(path)
    except DataError as problem:
        message = str(problem)
        rows = []
    for row in rows:
        for text, start in zip(*row["answers"].values(), strict=True):
            assert row["context"][start : start + len(text)] == text != ""
    assert rows or message.encode().startswith(f"{path}: ".encode())  # it can be printed, too


@settings(max_examples=300)
@given(st.data())
def test_a_file_with_any_one_node_changed_is_read_or_refused(tmp_path_factory, data):
    path = data.draw(st.sampled_from(list(nodes(valid()))))
    changed = mutated(valid(), path, data.draw(JSON), data.draw(st.booleans()))
    read_or_refuse(tmp_path_factory.getbasetemp(), changed)


@settings(max_examples=200)
@given(JSON | st.fixed_dictionaries({"data": st.lists(JSON, max_size=2)}) | st.binary(max_size=80))
def test_any_json_and_any_bytes_are_read_or_refused(tmp_path_factory, content):
    read_or_refuse(tmp_path_factory.getbasetemp(), content)


@given(st.data())
def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path_factory, data):
    content = bytearray(json.dumps(valid(), ensure_ascii=data.draw(st.booleans())).encode())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(tmp_path_factory.getbasetemp(), bytes(content))
