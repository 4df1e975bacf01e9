"""Question-answering data in SQuAD's form: CourseQA from the package, SQuAD 1.1 from a folder or the Hub, own files.

What a row looks like (the columns of `rajpurkar/squad`)::

    id        "56be4db0acb8001400a502ec"
    title     "Super_Bowl_50"                               the article
    context   "Super Bowl 50 was an American football ..."  the passage
    question  "Which NFL team represented the AFC ...?"
    answers   {"text": ["Denver Broncos", ...], "answer_start": [177, ...]}   one entry an annotator; characters

Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", arXiv:1606.05250.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from qa_helpers.common.io import hub_is_off, user_path
from qa_helpers.common.quiet import quiet
from qa_helpers.data.rows import DataError, Row, short
from qa_helpers.data.squad_file import read_squad_file

if TYPE_CHECKING:  # reading data needs neither it nor torch
    from datasets import Dataset

ASSETS = Path(__file__).parents[1] / "assets"
HUB_NAME = {"squad": "rajpurkar/squad"}  # the bare name "squad" no longer loads
FILE_NAMES = {"train": ("train-v1.1.json", "train.json"), "validation": ("dev-v1.1.json", "dev.json")}

Split = Literal["train", "validation"]
Sampling = Literal["first", "random"]
AT_ONCE = 10_000  # rows made into a part of a data set: more take more memory for a moment


@quiet()
def load_qa(
    name: str = "courseqa",
    split: Split | None = None,
    limit: int | None = None,
    sampling: Sampling = "first",
    seed: int = 0,
    per_passage: int | None = None,
) -> "Dataset":
    """Load a question-answering data set as a `datasets.Dataset` with SQuAD's columns.

    Args:
        name: "courseqa" (in the package), "squad" (the folder `$QA_DATA_DIR/squad` if that variable is set, else
            the Hub's `rajpurkar/squad`, whose rows are taken as they are), a folder with `train.json` and
            `dev.json`, or one SQuAD-format JSON file.
        split: "train" (the default) or "validation"; a single file has no splits.
        limit, sampling, seed, per_passage: which questions, see `choose`; all of them if neither `limit` nor
            `per_passage` is given.

    Raises:
        DataError: if the data set is not found (saying where it was looked for and what mends it), does not hold
            `limit` questions, or is not in SQuAD's form.
    """
    if split not in (None, "train", "validation"):
        raise DataError(f"there is no split '{split}'; use 'train' or 'validation'")
    if sampling not in ("first", "random"):
        raise DataError(f"there is no sampling '{sampling}'; use 'first' or 'random'")
    if per_passage is not None and per_passage < 1:
        raise DataError(f"{per_passage} questions of a passage at most leave none; use 1 or more")
    path = find_file(name, split)
    if path is None:
        dataset = _load_from_hub(HUB_NAME[name], split or "train")
    else:
        dataset = _as_dataset(read_squad_file(path), split)
    if limit is None and per_passage is None:
        return dataset
    return choose(dataset, name, limit, sampling, seed, per_passage)


def _as_dataset(rows: Sequence[Row], split: Split | None) -> "Dataset":
    import datasets

    from qa_helpers.common.device import progress_bar

    starts = progress_bar(range(0, len(rows), AT_ONCE), desc="loading", unit="part", delay=1)
    named = split and datasets.Split(split)
    parts = [datasets.Dataset.from_list(rows[at : at + AT_ONCE], split=named) for at in starts]
    return datasets.concatenate_datasets(parts)


def choose(
    dataset: "Dataset",
    name: str,
    limit: int | None,
    sampling: Sampling = "first",
    seed: int = 0,
    per_passage: int | None = None,
) -> "Dataset":
    """Some of a data set's questions.

    Args:
        dataset: questions with SQuAD's columns.
        name: what an error calls it.
        limit: how many; all of them if None.
        sampling: "first" takes them in file order, of SQuAD a few articles' alone; "random" draws without replacement
            from all questions of the file, so that an article gives as many as its share of them, and a larger draw
            with the same seed contains the smaller one.
        seed: of the random draw.
        per_passage: at most this many of one passage: further ones, in the order of `sampling`, are passed over, so
            that `limit` questions come from more passages.

    Raises:
        DataError: if there are fewer than `limit`.
    """
    order = list(range(len(dataset))) if sampling == "first" else sample_indices(len(dataset), len(dataset), seed)
    if per_passage is not None:
        order = _spread(order, dataset["context"], per_passage)
    if limit is not None and not 1 <= limit <= len(order):
        spread = "" if per_passage is None else f" with at most {per_passage} of a passage"
        raise DataError(
            f"{limit} questions were asked of '{name}', which holds {len(order)} here{spread}; "
            f"ask for 1 to {len(order)}"
        )
    return dataset.select(order[:limit])


def _spread(order: Sequence[int], passages: Iterable[str], most: int) -> list[int]:
    """The places in `order` without those whose passage has had `most` before."""
    passages, taken, kept = list(passages), Counter[str](), []
    for index in order:
        taken[passages[index]] += 1
        if taken[passages[index]] <= most:
            kept.append(index)
    return kept


def sample_indices(size: int, limit: int, seed: int) -> list[int]:
    """`limit` of `range(size)` drawn without replacement; a larger draw with the same seed contains the smaller."""
    order: list[int] = np.random.default_rng(seed).permutation(size)[:limit].tolist()
    return order


def find_file(name: str, split: Split | None = None) -> Path | None:
    """The JSON file that `load_qa(name, split)` reads, or None where it asks the Hub.

    Raises:
        DataError: if `name` is neither a known data set, a folder with the split's file, nor a file.
    """
    if name == "courseqa":
        return _file_in(ASSETS / "courseqa", split)
    if name == "squad":
        folder = os.environ.get("QA_DATA_DIR")
        return _file_in(user_path(folder) / "squad", split) if folder else None
    if name.startswith("~"):
        name = str(user_path(name))
    if os.path.isdir(name):  # unlike Path.is_dir, False also for a name too long for the file system
        return _file_in(Path(name), split)
    if not os.path.isfile(name):
        raise DataError(
            f"there is no data set '{short(name)}': use 'courseqa', 'squad', a folder with train.json and dev.json, "
            "or the path of a SQuAD-format JSON file"
        )
    if split is not None:
        raise DataError(f"{name}: a single file has no split '{split}'; leave the split out or give a folder")
    return Path(name)


def _file_in(folder: Path, split: Split | None) -> Path:
    names = FILE_NAMES[split or "train"]
    for name in names:
        if os.path.isfile(folder / name):
            return folder / name
    raise DataError(
        f"{short(str(folder), 300)}: holds no {' or '.join(names)}; put the file there"
        + (", or unset QA_DATA_DIR to use the Hub's copy" if folder.name == "squad" else "")
    )


def _load_from_hub(hub_name: str, split: str) -> "Dataset":
    import datasets

    try:
        return datasets.load_dataset(hub_name, split=split)
    # What an absent network raises changes with the client library (ConnectionError, OfflineModeIsEnabled,
    # httpx and huggingface_hub errors, FileNotFoundError), and all of it means the same to the user.
    except Exception as problem:
        reason = "HF_HUB_OFFLINE is set and it is not in the cache" if hub_is_off() else type(problem).__name__
        raise DataError(
            f"'{hub_name}' could not be loaded from the Hugging Face Hub ({reason}); connect to the network, or set "
            "QA_DATA_DIR to a folder that holds squad/train-v1.1.json and squad/dev-v1.1.json"
        ) from problem


def fingerprint(rows: Iterable[Row]) -> str:
    """16 hexadecimal digits that change with any id, passage, question or answer, or with their order."""
    digest = hashlib.sha256()
    for row in rows:
        answers = list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
        fields = [row["id"], row["context"], row["question"], answers]
        digest.update(json.dumps(fields, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]
