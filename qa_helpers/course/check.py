"""What this machine can do, what of the course's data and models is there, and which scale suits it."""

import socket

from qa_helpers.common.device import describe_machine
from qa_helpers.common.io import CourseError, hub_is_off
from qa_helpers.data.squad import HUB_NAME, find_file, load_qa
from qa_helpers.model.packaged import PACKAGED, NotInstalledError, find_packaged

HUB_SECONDS = 3.0  # to wait for the Hub's answer


def machine_report() -> tuple[list[tuple[str, str]], bool]:
    """What `python -m qa_helpers check` prints, name and text a line; whether the quick scale has all that it needs."""
    machine = describe_machine()
    versions, device = machine["versions"], machine["device"]
    native = machine["precision"].startswith("bf16")
    reports = {name: _data_report(name) for name in ("courseqa", "squad")}
    reports |= {name: _model_report(name) for name in PACKAGED}
    usable = {name for name, (is_usable, _) in reports.items() if is_usable}
    complete = {"courseqa", "minilm"} <= usable
    lines = {
        "Python": f"{versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}",
        "device": f"{device} ({machine['device_name']}), {machine['threads']} threads",
        "memory": f"{machine['memory_gib']} GiB",
        "bfloat16": "native: training uses it" if native else "not native: training uses fp32",
        **{name: text for name, (_, text) in reports.items()},
        "Hub": _hub_report(),
        "scale": _scale_report(device, complete, "squad" in usable),
    }
    return list(lines.items()), complete


def _data_report(name: str) -> tuple[bool, str]:
    try:
        if find_file(name, "train") is None:
            hub = HUB_NAME[name]
            return False, f"no folder given (QA_DATA_DIR is not set); would be loaded from the Hub's {hub}"
        sizes = {split: len(load_qa(name, split)) for split in ("train", "validation")}
    except CourseError as problem:
        return False, f"not usable: {problem}"
    return True, f"{sizes['train']:,} training and {sizes['validation']:,} validation questions"


def _model_report(name: str) -> tuple[bool, str]:
    try:
        find_packaged(name)
    except NotInstalledError as problem:
        return False, f"{'optional' if PACKAGED[name].requirements else 'not usable'}: {problem}"
    except CourseError as problem:
        return False, f"not usable: {problem}"
    return True, f"{PACKAGED[name].source}; sha256 as expected"


def _hub_report() -> str:
    if hub_is_off():
        return "not asked: HF_HUB_OFFLINE is set; only what is in its cache can be loaded"
    try:
        socket.create_connection(("huggingface.co", 443), timeout=HUB_SECONDS).close()
    except OSError:
        return "not reachable: the quick scale needs no network; other models must be in its cache or a folder"
    return "reachable"


def _scale_report(device: str, complete: bool, squad: bool) -> str:
    if not complete:
        return "none yet: the quick scale lacks what is marked above"
    if device == "cpu":
        return "quick (the default); class takes minutes a run on a CPU and needs SQuAD"
    return f"class (QA_SCALE=class){'' if squad else ', once SQuAD is there'}; quick works too"
