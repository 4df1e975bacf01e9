"""Rankings: real files, full disks, crashes in the middle of a choice, two kernels at once, and two users."""

import contextlib
import gzip
import json
import math
import sqlite3
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from little_space import no_file_longer_than

from qa_helpers.rlhf.ranking_store import (
    TABLE,
    Pair,
    Ranking,
    RankingError,
    RankingSession,
    agreement,
    append_ranking,
    read_history,
    read_rankings,
)

PAIRS = [
    Pair(id=f"q{i}", question=f"Who {i}?", context="A or B.", first=f"one {i}", second=f"two {i}") for i in range(9)
]


def ranking(id: str = "q0", choice: str = "first", user: str = "ada", **changes: str) -> Ranking:
    fields = {"id": id, "question": "Who?", "context": "A or B.", "first": "A", "second": "B"} | changes
    return Ranking(**fields, choice=choice, user=user, time=datetime(2026, 1, 2, tzinfo=UTC))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rankings.sqlite"


def database_of(*lines: str) -> bytes:
    """A file of rankings with these rows."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database, database:
        database.execute(TABLE)
        database.executemany("INSERT INTO rankings (ranking) VALUES (?)", [[line] for line in lines])
        database.commit()
        return database.serialize()


def put(path: Path, *lines: str) -> None:
    """Rows as somebody may have written them."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(TABLE)
        database.executemany("INSERT INTO rankings (ranking) VALUES (?)", [[line] for line in lines])


def read_or_sentence(path: Path) -> list[Ranking] | str:
    try:
        return read_history(path)
    except RankingError as problem:
        return str(problem)


# ---- the file --------------------------------------------------------------------------------------------------
def test_a_row_holds_the_named_fields(path: Path) -> None:
    session = RankingSession(PAIRS, path, "ada")
    session.choose(PAIRS[0], "tie")
    with contextlib.closing(sqlite3.connect(path)) as database:
        [(number, row)] = database.execute("SELECT * FROM rankings")
    line = json.loads(row)
    assert number == 1
    assert line.pop("time").endswith("Z"), "UTC"
    assert line == PAIRS[0].model_dump() | {"choice": "tie", "user": "ada"}


@settings(max_examples=25)  # each is seen onto the disk
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=4, max_size=4))
def test_any_texts_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("rankings") / "file.sqlite"
    pair = Pair.of(*texts)
    session = RankingSession([pair], path, "ada")
    assert session.choose(pair, "A")
    assert [one.pair for one in read_rankings(path)] == [pair]
    assert RankingSession([pair], path, "ada").current is None


def test_ids_made_from_texts_differ_with_any_of_them() -> None:
    pairs = [Pair.of("q", "c", "a", "b"), Pair.of("q", "c", "b", "a"), Pair.of("qc", "", "a", "b")]
    assert len({pair.id for pair in pairs}) == 3
    assert Pair.of("q", "c", "a", "b") == pairs[0]


def test_a_later_choice_replaces_an_earlier_one_and_undo_takes_it_back(path: Path) -> None:
    for one in (ranking("q0", "first"), ranking("q1", "tie"), ranking("q0", "second"), ranking("q0", user="bob")):
        append_ranking(path, one)
    assert [(one.id, one.choice, one.user) for one in read_rankings(path)] == [
        ("q1", "tie", "ada"),
        ("q0", "second", "ada"),
        ("q0", "first", "bob"),
    ]
    append_ranking(path, ranking("q0", "undo"))
    assert [(one.id, one.user) for one in read_rankings(path)] == [("q1", "ada"), ("q0", "bob")]
    assert len(read_history(path)) == 5, "what was undone stays in the file"


def test_no_file_is_no_ranking_and_reading_makes_none(path: Path) -> None:
    assert read_rankings(path) == []
    assert not path.exists()


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@example(content=b"SQLite format 3\0" + bytes(84))
def test_any_bytes_are_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("rankings") / "file.sqlite"
    path.write_bytes(content)
    found = read_or_sentence(path)
    assert found == [] or (str(found).startswith(f"{path}: ") and "\n" not in str(found))
    assert path.read_bytes() == content


@given(data=st.data())
def test_a_changed_byte_is_read_or_refused_and_never_hides_other_choices(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rankings") / "file.sqlite"
    whole = [ranking(f"q{i}") for i in range(3)]
    content = bytearray(database_of(*(one.model_dump_json() for one in whole)))
    place = data.draw(st.sampled_from([place for place, byte in enumerate(content) if byte]))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found = read_or_sentence(path)
    if isinstance(found, list):
        assert len(found) == 3
        assert sum(one != as_it_was for one, as_it_was in zip(found, whole, strict=True)) <= 1
    else:
        assert found.startswith(f"{path}: ")
        assert "\n" not in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"choice": "third"}, "choice 2: choice: Input should be 'first', 'second', 'tie', 'skip' or 'undo'"),
        ({"time": "2026-01-02T03:04:05"}, "choice 2: time: "),
        ({"id": ""}, "choice 2: id: "),
        ({"more": 1}, "choice 2: more: Extra inputs"),
    ],
)
def test_a_wrong_row_is_named(path: Path, change: dict[str, object], words: str) -> None:
    append_ranking(path, ranking("q0"))
    put(path, json.dumps(json.loads(ranking("q1").model_dump_json()) | change))
    with pytest.raises(RankingError, match=f"^{path}: {words}"):
        read_rankings(path)


def test_whoever_is_killed_while_writing_loses_only_that_choice(path: Path) -> None:
    append_ranking(path, ranking("q0"))
    program = (
        "import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "database.execute('PRAGMA cache_size = 1'); database.execute('BEGIN IMMEDIATE'); "
        "[database.execute('INSERT INTO rankings (ranking) VALUES (?)', ['{' * 4000]) for _ in range(50)]; "
        "os.kill(os.getpid(), 9)"
    )
    before = path.stat().st_size
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert path.stat().st_size > before, "it had begun to write into the file"
    assert [one.id for one in read_rankings(path)] == ["q0"]
    append_ranking(path, ranking("q1"))
    assert [one.id for one in read_rankings(path)] == ["q0", "q1"]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_choice_is_seen_onto_the_disk_before_the_call_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, connect = [], sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(asked.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    append_ranking(path, ranking())
    assert asked.index("PRAGMA synchronous = EXTRA") < asked.index("BEGIN IMMEDIATE") < asked.index("COMMIT")


def database_of_something_else() -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE notes (text)")
        return database.serialize()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"choices"), "is compressed with gzip; unpack it first"),
        (b"notes of mine, without a line end", "is no file of rankings, and is left as it is; give another .*"),
        (b"[]", "is no file of rankings, and is left as it is; .*"),
        (ranking().model_dump_json().encode(), r".* \(they were text up to commit [0-9a-f]{7}\)"),
        (database_of_something_else(), "is no file of rankings, and is left as it is; .*"),
    ],
)
def test_somebody_elses_file_is_refused_and_kept(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(RankingError, match=f"^{path}: {words}$"):
        RankingSession(PAIRS, path, "ada")
    with pytest.raises(RankingError, match=f"^{path}: {words}$"):
        append_ranking(path, ranking())
    assert path.read_bytes() == content


def test_a_name_with_half_a_character_is_refused(path: Path) -> None:
    with pytest.raises(RankingError, match="the name of who ranks holds half a character"):
        RankingSession(PAIRS, path, "ad\ud83d")


# ---- a full disk, two kernels ----------------------------------------------------------------------------------
def test_a_full_disk_loses_nothing_and_is_said_in_one_sentence(path: Path) -> None:
    session = RankingSession(PAIRS, path, "ada")
    session.choose(PAIRS[0], "A")
    before = path.read_bytes()
    for size in (0, len(before) // 2, len(before) - 1):
        with (
            no_file_longer_than(size),
            pytest.raises(RankingError, match=r"could not be written \(.*\); all earlier ones are kept; mend it and"),
        ):
            session.choose(PAIRS[1], "B")
        assert path.read_bytes() == before
        assert session.current == PAIRS[1]
    assert session.choose(PAIRS[1], "B"), "once there is space, the same choice can be made"
    assert [one.id for one in read_rankings(path)] == ["q0", "q1"]


def test_an_undo_that_cannot_be_written_leaves_the_choice(path: Path) -> None:
    session = RankingSession(PAIRS, path, "ada")
    session.choose(PAIRS[0], "A")
    with no_file_longer_than(0), pytest.raises(RankingError):
        session.undo()
    assert session.current == PAIRS[1]


def test_a_path_that_cannot_be_written_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "rankings.sqlite", Path("a\0b")):
        with pytest.raises(RankingError):
            append_ranking(path, ranking())
        with pytest.raises(RankingError, match="cannot be read"):
            read_rankings(path)


def test_who_holds_the_file_is_waited_for_and_then_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_ranking(path, ranking())
    monkeypatch.setattr("qa_helpers.rlhf.ranking_store.LOCK_SECONDS", 0.1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RankingError, match="another program is writing"):
            append_ranking(path, ranking("q1"))
    append_ranking(path, ranking("q2"))
    assert [one.id for one in read_rankings(path)] == ["q0", "q2"]


def test_two_kernels_lose_nothing_of_what_they_write_at_once(path: Path) -> None:
    program = (
        "import sys; from qa_helpers.rlhf import ranking_store; "
        "ranking_store.LOCK_SECONDS = 60; "  # on a busy machine, a disk may take seconds for one choice
        "pairs = [ranking_store.Pair.of(str(i), '', 'a', 'b') for i in range(10)]; "
        "session = ranking_store.RankingSession(pairs, sys.argv[1], sys.argv[2]); "
        "[session.choose(pair, 'A') for pair in pairs]"
    )
    kernels = [subprocess.Popen([sys.executable, "-c", program, str(path), user]) for user in ("ada", "bob")]
    assert [kernel.wait(240) for kernel in kernels] == [0, 0]
    chosen = read_rankings(path)
    assert Counter(one.user for one in chosen) == {"ada": 10, "bob": 10}
    for user in ("ada", "bob"):
        assert [one.question for one in chosen if one.user == user] == [str(i) for i in range(10)]


# ---- sessions --------------------------------------------------------------------------------------------------
def test_a_session_goes_on_where_the_file_stops(path: Path) -> None:
    first = RankingSession(PAIRS, path, "ada")
    for button in ("A", "B", "tie", "skip"):
        assert first.current
        first.choose(first.current, button)  # type: ignore[arg-type]
    again = RankingSession(PAIRS, path, " ada ")
    assert again.current == PAIRS[4]
    assert list(again.chosen.items()) == list(first.chosen.items())
    assert RankingSession(PAIRS, path, "bob").current == PAIRS[0]
    assert RankingSession(PAIRS[2:], path, "ada").current == PAIRS[4]


def test_undo_goes_back_choice_by_choice_also_after_a_restart(path: Path) -> None:
    session = RankingSession(PAIRS, path, "ada")
    for pair in PAIRS[:3]:
        session.choose(pair, "A")
    assert session.undo() == PAIRS[2]
    again = RankingSession(PAIRS, path, "ada")
    assert again.undo() == PAIRS[1]
    assert again.current == PAIRS[1]
    again.choose(PAIRS[1], "skip")
    assert [one.choice for one in read_history(path)][-3:] == ["undo", "undo", "skip"]
    assert again.undo() == PAIRS[1]
    assert again.undo() == PAIRS[0]
    assert again.undo() is None
    assert read_rankings(path) == []


def test_a_pair_is_chosen_once(path: Path) -> None:
    session = RankingSession(PAIRS, path, "ada")
    assert session.choose(PAIRS[0], "A")
    assert not session.choose(PAIRS[0], "B")
    assert len(read_history(path)) == 1


def test_what_is_chosen_is_the_answer_that_was_shown(path: Path) -> None:
    session = RankingSession(PAIRS, path, "ada")
    for pair in PAIRS:
        session.choose(pair, "B")
    for pair, chosen in zip(PAIRS, read_rankings(path), strict=True):
        assert getattr(chosen, chosen.choice) == session.shown(pair)["B"]


def test_the_position_is_drawn_by_seed_pair_and_user(path: Path) -> None:
    pairs = [Pair.of(str(i), "", "1", "2") for i in range(400)]
    swapped = {
        (user, seed): [RankingSession([], path, user, seed).is_swapped(pair) for pair in pairs]
        for user in ("ada", "bob")
        for seed in (0, 1)
    }
    assert len({tuple(order) for order in swapped.values()}) == 4
    assert swapped["ada", 0] == [RankingSession(pairs, path, "ada").is_swapped(pair) for pair in pairs]
    assert all(150 < sum(order) < 250 for order in swapped.values()), "about half"


def test_pairs_that_do_not_fit_are_refused(path: Path) -> None:
    with pytest.raises(RankingError, match="'q0' stands twice"):
        RankingSession([*PAIRS, PAIRS[0]], path, "ada")
    with pytest.raises(RankingError, match="say who ranks"):
        RankingSession(PAIRS, path, "  ")
    append_ranking(path, ranking("q3"))
    with pytest.raises(RankingError, match="ranks other texts under the id 'q3'"):
        RankingSession(PAIRS, path, "bob")


# ---- agreement -------------------------------------------------------------------------------------------------
def test_cohens_kappa_of_a_worked_case() -> None:
    # 50 pairs: 20 both first, 15 both second, 5 first/second, 10 second/first. raw 0.7, chance 0.5, kappa 0.4.
    choices = [("first", "first")] * 20 + [("second", "second")] * 15
    choices += [("first", "second")] * 5 + [("second", "first")] * 10
    lines = [
        ranking(f"q{i}", choice, user) for i, two in enumerate(choices) for user, choice in zip("ab", two, strict=True)
    ]
    (found,) = agreement([*lines, ranking("q99", "skip", "a"), ranking("q99", "first", "b"), ranking("q100", user="c")])
    assert found.users == ("a", "b")
    assert found.pairs == 50
    assert found.raw == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)


def test_kappa_says_nothing_where_only_one_choice_was_ever_made() -> None:
    (found,) = agreement([ranking(user="a"), ranking(user="b")])
    assert found.raw == 1
    assert math.isnan(found.kappa)


def test_a_user_alone_agrees_with_nobody() -> None:
    assert agreement([ranking(), ranking("q1")]) == []


def test_reading_rankings_loads_neither_torch_nor_ipywidgets() -> None:
    heavy = "{'torch', 'ipywidgets', 'numpy'}"
    program = f"import sys, qa_helpers.rlhf.ranking_store; print({heavy} & set(sys.modules) or 'none')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "none"


# ---- spans -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("start", "words"), [(1, "does not read 'A' at character 1"), (99, "at character 99")])
def test_an_answer_starts_where_it_says(path: Path, start: int, words: str) -> None:
    line = ranking().model_dump(mode="json") | {"first_start": start}
    put(path, json.dumps(line))
    with pytest.raises(RankingError, match=f"choice 1: Value error, first_start: the context .*{words}"):
        read_rankings(path)
    path.unlink()
    put(path, json.dumps(line | {"first_start": 0, "second_start": 5}))
    assert read_rankings(path)[0].second_start == 5


def test_a_pairs_id_is_of_its_texts_and_places() -> None:
    texts = ("Who?", "A or A.", "A", "or")
    pairs = [Pair.of(*texts), Pair.of(*texts, first_start=0), Pair.of(*texts, first_start=5), Pair.of(*texts[:3], "A.")]
    assert len({pair.id for pair in pairs}) == 4
    assert Pair.of(*texts) == pairs[0]


def test_answers_are_looked_for_only_where_the_pair_does_not_say(path: Path) -> None:
    texts = {"question": "Who?", "context": "A or A, B.", "first": "A", "second": "B"}
    for places, expected in (({}, {"A": 0, "B": 8}), ({"first_start": 5}, {"A": 5, "B": 8})):
        pair = Pair.of(**texts, **places)
        for seed in range(4):  # whichever is shown as A
            session = RankingSession([pair], path, "ada", seed)
            by_text = {session.shown(pair)[letter]: start for letter, start in session.starts(pair).items()}
            assert by_text == expected
    gone = Pair.of(**texts | {"first": "C", "second": ""})
    assert RankingSession([gone], path, "ada").starts(gone) == {}
