"""The package as a whole: quick to import, its modules in one order, no unsafe loading, its data as published."""

import ast
import graphlib
import hashlib
import importlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import qa_helpers
from qa_helpers.common.moved import OLD
from qa_helpers.data.squad import ASSETS

PACKAGE = Path(qa_helpers.__file__).parent
# What lies in a folder imports only from it and from those before it.
STAGES = (
    "common",
    "data",
    "model",
    "training",
    "evaluation",
    "experiment",
    "report",
    "rlhf",
    "widgets",
    "course",
    "__main__",
)
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path):
    """A file's name as a module."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in SOURCES}


def imported(path):
    """The modules of this package that a module imports anywhere, also inside functions, and relatively too."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(SOURCES[path]):
        if path.name == "__init__.py" and path.parent == PACKAGE:
            return  # names for students, each loaded when it is asked for
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            if module.split(".")[0] == "qa_helpers":
                named = [f"{module}.{alias.name}" for alias in node.names]
                yield from (name if name in MODULES else module for name in named)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "qa_helpers")


def stage_of(module):
    """The folder, or file at the top, in which a module lies."""
    return module.split(".")[1]


def test_every_module_lies_in_a_stage_and_every_stage_is_there():
    assert {stage_of(module) for module in MODULES if module != "qa_helpers"} == set(STAGES)


@pytest.mark.parametrize("module", MODULES)
def test_a_stage_imports_only_from_those_before_it(module):
    found = set(imported(MODULES[module]))
    assert found <= set(MODULES) - {"qa_helpers"}, "imports name the module that defines what they need"
    before = () if module == "qa_helpers" else STAGES[: STAGES.index(stage_of(module)) + 1]
    assert {stage_of(name) for name in found} <= set(before)


def test_no_module_needs_itself():
    graph = graphlib.TopologicalSorter({module: set(imported(path)) for module, path in MODULES.items()})
    assert len(list(graph.static_order())) == len(MODULES)  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from qa_helpers.common import io", "qa_helpers.common.io"),
        ("def lazily():\n    from qa_helpers.common.io import read_json", "qa_helpers.common.io"),
        ("import qa_helpers.common.io", "qa_helpers.common.io"),
        ("from . import rows", "qa_helpers.data.rows"),
        ("from ..common.io import read_json", "qa_helpers.common.io"),
        ("from .rows import DataError", "qa_helpers.data.rows"),
    ],
)
def test_every_form_of_an_import_is_seen(monkeypatch, source, found):
    path = PACKAGE / "data" / "squad.py"
    monkeypatch.setitem(SOURCES, path, ast.parse(source))
    assert list(imported(path)) == [found]


def test_evaluation_is_used_by_the_experiments_and_not_by_the_training():
    assert "evaluation" in {stage_of(name) for name in imported(PACKAGE / "experiment" / "run.py")}
    assert "evaluation" not in {stage_of(name) for name in imported(PACKAGE / "training" / "trainer.py")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_and_no_foreign_code_is_run(path):
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {"pickle", "joblib", "dill", "shelve"}
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in ("pickle", "joblib", "dill", "shelve")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        assert name not in ("eval", "exec", "torch.load")
        assert options.get("trust_remote_code", "False") == "False"
        assert options.get("use_safetensors", "True") == "True"
        assert options.get("allow_pickle", "False") == "False"


def test_experiments_are_changed_by_what_checks_them():
    """pydantic's `model_copy(update=...)` checks nothing: `record.change` takes its place, also in the notebooks."""
    for path in [*SOURCES, *(PACKAGE.parent / "notebooks").glob("*.ipynb")]:
        assert "model_copy(" not in path.read_text(encoding="utf-8"), path


def test_the_students_names_are_those_of_the_table_and_each_is_what_its_module_defines():
    table = re.findall(r"^\| (`.*`) \|", qa_helpers.__doc__, re.MULTILINE)
    told = [name for row in table for name in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(qa_helpers.__all__)
    block = next(node for node in SOURCES[PACKAGE / "__init__.py"].body if isinstance(node, ast.If))
    for_editors = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(for_editors) == sorted(qa_helpers.__all__)
    for name, module in for_editors.items():
        assert getattr(qa_helpers, name) is getattr(importlib.import_module(module), name), name
        assert name in dir(qa_helpers)


def test_another_name_is_not_there():
    with pytest.raises(AttributeError, match=r"^module 'qa_helpers' has no attribute 'no_such_name'$"):
        qa_helpers.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    "line",
    [
        "import qa_helpers.records",
        "from qa_helpers.experiments import run_experiment",
        "from qa_helpers.first_cell import prepare",
        "from qa_helpers.rlhf.chains import run_chain",
        "from qa_helpers.data import load_qa",
        "from qa_helpers.training import train",
        "from qa_helpers.evaluation import evaluate",
    ],
)
def test_an_old_import_says_where_it_still_holds(line):
    name = re.sub(r"^(?:import|from) (\S+)(?: import (\w+))?$", r"\1", line)
    with pytest.raises(ImportError, match=rf"^{name}.* has moved, .*; commit [0-9a-f]{{7}} is the last with the old"):
        exec(line)


@pytest.mark.parametrize("folder", ["data", "evaluation", "training"])
def test_who_looks_for_a_name_in_a_folder_is_told_that_there_is_none(folder):
    assert not hasattr(importlib.import_module(f"qa_helpers.{folder}"), "load_qa")


def test_no_module_of_today_is_called_old():
    assert not OLD & set(MODULES)


def test_the_first_cells_name_needs_nothing_but_the_standard_library():
    program = (
        "import sys; sys.meta_path.insert(0, type('', (), {'find_spec': staticmethod(lambda name, *_: "
        "None if name.partition('.')[0] in sys.stdlib_module_names | {'qa_helpers'} else (_ for _ in ()).throw("
        "ModuleNotFoundError(name)))})()); from qa_helpers import prepare; print(prepare.__module__)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "qa_helpers.course.first_cell"


def test_the_package_is_imported_within_half_a_second_without_torch():
    program = (
        "import sys, time; begin = time.perf_counter(); import qa_helpers; print(time.perf_counter() - begin); "
        "print(*{'torch', 'transformers', 'datasets', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        first, loaded = result.stdout.split("\n", 1)
        seconds.append(float(first))
        assert not loaded.strip()
    assert statistics.median(seconds) < 0.5


@pytest.mark.parametrize("module", ["data.squad", "evaluation.metrics"])
def test_reading_data_and_scoring_text_load_neither_torch_nor_transformers(module):
    heavy = "{'torch', 'transformers', 'datasets'}"
    program = f"import sys, qa_helpers.{module}; print({heavy} & set(sys.modules) or 'none')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "none"


COURSEQA = {  # sha256 and number of questions, as published
    "train.json": ("d2fd68690423616910e4db254d9019e810d567f2b160317a582f81d51cd07229", 622),
    "dev.json": ("2e480ff5ca445cb8a290edaa30c07aab7c38fcf7136e7710b4d5ab2c32cd91c2", 206),
}


@pytest.mark.parametrize("name", COURSEQA)
def test_courseqa_is_the_published_one(name):
    content = (ASSETS / "courseqa" / name).read_bytes()
    digest, count = COURSEQA[name]
    assert hashlib.sha256(content).hexdigest() == digest
    articles = json.loads(content)["data"]
    questions = [qa for article in articles for part in article["paragraphs"] for qa in part["qas"]]
    assert len(questions) == count
    assert {len(qa["answers"]) for qa in questions} == {3}


def test_the_two_parts_of_courseqa_share_no_article_and_no_question():
    parts = [json.loads((ASSETS / "courseqa" / name).read_text(encoding="utf-8"))["data"] for name in COURSEQA]
    for name, of_part in {
        "titles": lambda part: {article["title"] for article in part},
        "passages": lambda part: {p["context"] for article in part for p in article["paragraphs"]},
        "ids": lambda part: {qa["id"] for article in part for p in article["paragraphs"] for qa in p["qas"]},
        "questions": lambda part: {
            qa["question"] for article in part for p in article["paragraphs"] for qa in p["qas"]
        },
    }.items():
        train, validation = map(of_part, parts)
        assert train, name
        assert validation, name
        assert not train & validation, name


def test_the_data_are_part_of_what_is_installed():
    import tomllib

    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["qa_helpers"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert {ASSETS / "courseqa" / name for name in COURSEQA} | {PACKAGE / "py.typed"} <= packaged
    folders = {path.parent for path in SOURCES}
    assert {".".join(folder.relative_to(PACKAGE.parent).parts) for folder in folders} == set(settings["packages"])
