"""The scales of the course's notebooks: how much work they do, on which data and model."""

import os
from dataclasses import dataclass

from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.spec import EvalSet, SpanTraining


@dataclass(frozen=True)
class Scale:
    """How much work a notebook does. See docs/set-up.md for the four."""

    name: str
    data: str
    baseline_size: int  # training questions of the class baseline's replay
    sizes: tuple[int, ...]  # and of the scaling experiments
    epochs: int
    learning_rate: float
    model: str = "minilm"

    def baseline(self, train_size: int | None = None, seed: int = 0) -> SpanTraining:
        """The class baseline at this scale (batch 8), with another training size if one is given."""
        size = train_size or self.baseline_size
        evaluations = {"all": EvalSet()}
        if self.data == "squad":  # CourseQA's validation set is small enough to be asked as a whole only
            evaluations["first-500"] = EvalSet(limit=500)
            evaluations["random-500"] = EvalSet(limit=500, sampling="random")
        return SpanTraining(
            name=f"{self.name}-baseline-{size}-seed{seed}",
            data=self.data,
            train_size=size,
            evaluations=evaluations,
            model=self.model,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            seed=seed,
        )


SCALES = {
    # CourseQA's few questions make few optimizer steps, hence the higher learning rate.
    "quick": Scale("quick", "courseqa", 500, (100, 200, 500), epochs=3, learning_rate=2e-4),
    "class": Scale("class", "squad", 1_000, (1_000, 2_000, 5_000), epochs=3, learning_rate=1e-4),
    # The size of model that a class uses; the rate is the usual one for it, and was not searched.
    "base": Scale("base", "squad", 1_000, (1_000, 2_000, 5_000), epochs=3, learning_rate=5e-5, model="mpnet"),
    "full": Scale("full", "squad", 87_599, (87_599,), epochs=2, learning_rate=3e-5, model="bert-base-uncased"),
}


def current_scale() -> Scale:
    """The scale that `$QA_SCALE` names, `quick` if it is not set.

    Raises:
        RecordError: if there is no such scale.
    """
    name = os.environ.get("QA_SCALE") or "quick"
    if name not in SCALES:
        raise RecordError(f"QA_SCALE is '{name}'; set it to {', '.join(SCALES)}, or leave it unset for quick")
    return SCALES[name]
