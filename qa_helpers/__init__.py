"""Helpers for the course: data, training and evaluation of question-answering models.

What its notebooks use most can be had from here, and is loaded when it is asked for:

| name | what it is |
| --- | --- |
| `prepare`, `check`, `publish` | a notebook's first cell; a figure that must hold; a figure that its test compares |
| `load_qa` | questions with their passages: CourseQA, SQuAD, or a file in SQuAD's form |
| `make_windows` | question and passage as a model reads them |
| `load_qa_model`, `load_tokenizer` | a packaged model, one of the Hub, or one in a folder |
| `set_trainable`, `count_parameters` | which weights training changes, and how many they are |
| `answer`, `evaluate` | a model's answers; how many of them are right |
| `exact_match`, `f1`, `contained`, `string_equality`, `normalize_answer` | an answer against the given ones |
| `bootstrap_mean`, `paired_difference`, `mcnemar` | how far a figure, or a gain, can be trusted |
| `SCALES`, `current_scale`, `method`, `replay` | the course's experiments, small and large |
| `change` | an experiment with some of its fields changed |
| `run_experiment`, `load_trained`, `runs_folder` | run it, or read it back; its model; where runs are kept |
| `load_records`, `paired_columns`, `score` | recorded runs; two of them question by question; a score of percent |
| `scores`, `compare`, `Table` | tables: of runs' scores, of two runs compared, of whatever is to be read |
| `plots`, `highlight` | figures; a passage with its answer marked |
| `Playground`, `TrainerPanel`, `Dashboard`, `RankingWidget` | what a reader plays with |
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qa_helpers.common.moved import explain_old_names

if TYPE_CHECKING:  # for editors and type checkers; a test holds it to _DEFINED_IN
    from qa_helpers.course.checks import check, publish
    from qa_helpers.course.first_cell import prepare
    from qa_helpers.data.squad import load_qa
    from qa_helpers.data.windows import make_windows
    from qa_helpers.evaluation.comparisons import mcnemar, paired_difference
    from qa_helpers.evaluation.metrics import contained, evaluate, exact_match, f1, normalize_answer, string_equality
    from qa_helpers.evaluation.span_answers import answer
    from qa_helpers.evaluation.statistics import bootstrap_mean
    from qa_helpers.experiment.catalogue import method, replay
    from qa_helpers.experiment.record import paired_columns
    from qa_helpers.experiment.record_files import load_records
    from qa_helpers.experiment.run import score
    from qa_helpers.experiment.scales import SCALES, current_scale
    from qa_helpers.experiment.spec import change
    from qa_helpers.experiment.store import load_trained, run_experiment, runs_folder
    from qa_helpers.model.load import load_qa_model, load_tokenizer
    from qa_helpers.model.trainable import count_parameters, set_trainable
    from qa_helpers.report import plots
    from qa_helpers.report.tables import Table, compare, highlight, scores
    from qa_helpers.widgets.dashboard import Dashboard
    from qa_helpers.widgets.playground import Playground
    from qa_helpers.widgets.ranking import RankingWidget
    from qa_helpers.widgets.trainer import TrainerPanel

_DEFINED_IN = {
    name: module
    for module, names in {
        "course.checks": "check publish",
        "course.first_cell": "prepare",
        "data.squad": "load_qa",
        "data.windows": "make_windows",
        "evaluation.metrics": "contained evaluate exact_match f1 normalize_answer string_equality",
        "evaluation.span_answers": "answer",
        "evaluation.comparisons": "mcnemar paired_difference",
        "evaluation.statistics": "bootstrap_mean",
        "experiment.catalogue": "method replay",
        "experiment.record": "paired_columns",
        "experiment.record_files": "load_records",
        "experiment.run": "score",
        "experiment.scales": "SCALES current_scale",
        "experiment.spec": "change",
        "experiment.store": "load_trained run_experiment runs_folder",
        "model.load": "load_qa_model load_tokenizer",
        "model.trainable": "count_parameters set_trainable",
        "report.plots": "plots",
        "report.tables": "Table compare highlight scores",
        "widgets.dashboard": "Dashboard",
        "widgets.playground": "Playground",
        "widgets.ranking": "RankingWidget",
        "widgets.trainer": "TrainerPanel",
    }.items()
    for name in names.split()
}
__all__ = list(_DEFINED_IN)


explain_old_names()


def __getattr__(name: str) -> Any:
    """A name of the table above, looked up in its module each time (PEP 562)."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = import_module(f"{__name__}.{_DEFINED_IN[name]}")
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_DEFINED_IN})
