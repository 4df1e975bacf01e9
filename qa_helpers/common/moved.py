"""Where things were before the package lay in folders: an old import says so in one sentence."""

import sys
from importlib.machinery import ModuleSpec
from typing import Any

LAST_COMMIT = "93802ce"  # the last one with the old names, and with records of one JSON file each
_FLAT = (
    "checks cloze counts diagnosis experiments features files first_cell grading ideas language_model lineage machine",
    "models nbval_tolerance notebooks plots rankings records retrieval rows scales scaling soft_labels statistics",
    "sweep tuning rlhf.chains rlhf.records rlhf.language_answers rlhf.language_chains rlhf.language_records",
    "rlhf.language_reward rlhf.language_updates rlhf.reference rlhf.outcomes rlhf.plans rlhf.comparison rlhf.rankings",
)
OLD = frozenset(f"qa_helpers.{name}" for line in _FLAT for name in line.split())
_WERE_MODULES = ("qa_helpers.data", "qa_helpers.evaluation", "qa_helpers.training")  # names they held are asked for


class MovedError(ImportError):
    """What is asked for lies elsewhere now."""

    def __init__(self, name: str) -> None:
        """Say where, and which commit still has it."""
        super().__init__(
            f"{name} has moved, see the package's folders in the README; commit {LAST_COMMIT} is the last with the old "
            "names, and notebooks of that time run there",
            name=name,
        )


class _Old:
    """The last of the import system's finders: it is asked for what no other has found."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> ModuleSpec | None:
        folder, last = name.rsplit(".", 1) if "." in name else ("", name)
        if name in OLD or (folder in _WERE_MODULES and not last.startswith("_")):
            raise MovedError(name)
        return None


def explain_old_names() -> None:
    """Let the import of a module that was have its sentence."""
    if _Old not in sys.meta_path:
        sys.meta_path.append(_Old)
