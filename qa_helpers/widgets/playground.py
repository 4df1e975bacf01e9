"""The playground: ask one model, or two side by side, about any passage, and see how sure they are of what.

What it simplifies: models that point at a span only. Of a long paste the first `MOST_TOKENS` tokens are read, and of
what is read the part around the answer is shown; what was cut is said.
"""

import contextlib
import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import default_device
from qa_helpers.common.io import CourseError
from qa_helpers.data.rows import DataError, Row, check_text, is_blank
from qa_helpers.data.squad import load_qa
from qa_helpers.evaluation.span_answers import Span, TokenScore, answer
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.spec import Combination, read_experiment
from qa_helpers.experiment.store import load_trained, runs_folder
from qa_helpers.model import load
from qa_helpers.widgets.look import Mark, Shown, block, button, labelled, paragraph, passage, problem, table

MOST_CHARACTERS = 30_000  # of a passage, before it is cut into tokens
MOST_TOKENS = 4_000  # about 3,000 English words, 18 windows: a second's work on one core
N_BEST = 5
STRIP_TOKENS = 120  # of the heat strip
LEAST_SHOWN = 0.01  # probabilities below are left out of the strip
TOKEN_CHARACTERS = 30  # of one token in the strip

Loaded = tuple[nn.Module, PreTrainedTokenizerFast]
Loader = Callable[[], Loaded]


# ---- asking ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answered:
    """What a model said to a question, with all that is shown of it."""

    question: str
    context: str  # what was read of the passage
    left_out: int  # characters of the passage that were not read
    windows: int
    n_best: list[Span]  # the answer first
    tokens: list[TokenScore]

    @property
    def answer(self) -> Span:
        """The best span of the passage."""
        return self.n_best[0]


def ask(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, question: str, context: str, n_best: int = N_BEST
) -> Answered:
    """Ask a model with a span head about a passage.

    Args:
        model: on any device.
        tokenizer: its tokenizer.
        question, context: any text; of a long passage the beginning is read, see `Answered.left_out`.
        n_best: answers kept.

    Raises:
        CourseError: if the passage or the question is empty, the question too long, or no token is the model's.
    """
    for name, text in (("passage", context), ("question", question)):
        if is_blank(text):
            raise DataError(f"the {name} is empty: type or pick one")
        check_text(text, f"the {name}")
    if len(question) > MOST_CHARACTERS:
        raise DataError(f"the question has {len(question):,} characters: shorten it")
    read = cut(context, tokenizer)
    row: Row = {"id": "yours", "question": question, "context": read}
    [prediction] = answer(model, tokenizer, [row], n_best, token_scores=True).predictions
    if not prediction.n_best:
        raise DataError("the passage holds nothing that the model can read: type or pick another")
    return Answered(question, read, len(context) - len(read), prediction.windows, prediction.n_best, prediction.tokens)


def cut(context: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """The beginning of a passage, at most `MOST_CHARACTERS` and `MOST_TOKENS` of it."""
    context = context[:MOST_CHARACTERS]
    offsets = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return context if len(offsets) <= MOST_TOKENS else context[: offsets[MOST_TOKENS - 1][1]]


# ---- showing ---------------------------------------------------------------------------------------------------
def answered_html(answered: Answered, name: str) -> str:
    """An answer in its passage, the next best ones, and where the model sees starts and ends."""
    best, text = answered.answer, answered.context
    cut = []
    if answered.left_out:
        words = f"The passage is long: its first {len(text):,} characters were read, {answered.left_out:,} were not."
        cut.append(paragraph(words, "qa-muted"))
    if answered.windows > 1:
        words = (
            f"The passage was read in {answered.windows} overlapping windows; the best answer of all of them counts."
        )
        cut.append(paragraph(words, "qa-muted"))
    rows = [(rank, _short(span.text), 100 * span.probability) for rank, span in enumerate(answered.n_best, 1)]
    return "".join(
        [
            f"<div><p><b>{html.escape(name)}</b>: {html.escape(_short(best.text))} ",
            f"(confidence {100 * best.probability:.1f} %)</p>",
            passage(text, [Mark(best.start, best.start + len(best.text), "answer")]),
            *cut,
            table("Best answers", ("", "answer", "probability (%)"), rows),
            strip_html(answered),
            "</div>",
        ]
    )


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[:most] + "…"


def strip_html(answered: Answered) -> str:
    """The passage's tokens around the answer: before each the probability that the answer starts there, after it ends.

    In percent, and as a shade: orange for starts, blue for ends.
    """
    tokens, best = answered.tokens, answered.answer
    first = next((i for i, token in enumerate(tokens) if token.start >= best.start), 0)
    low = max(0, min(first - STRIP_TOKENS // 2, len(tokens) - STRIP_TOKENS))
    shown = tokens[low : low + STRIP_TOKENS]
    legend = "Tokens: ▸ the answer starts here, ◂ it ends here, in percent; nothing where it is less than one."
    if len(shown) < len(tokens):
        legend += f" Tokens {low + 1:,} to {low + len(shown):,} of {len(tokens):,}."
    chips = " ".join(_chip(answered.context[token.start : token.end], token) for token in shown)
    return f'{paragraph(legend, "qa-muted")}<div class="qa-strip" dir="auto">{chips}</div>'


def _chip(text: str, token: TokenScore) -> str:
    start = _bar("▸{:.0f} ", token.starts, "230,159,0")  # ORANGE and SKY, on white: black text stays readable
    end = _bar(" ◂{:.0f}", token.ends, "86,180,233")
    return f'<span class="qa-token">{start}{html.escape(_short(text, TOKEN_CHARACTERS))}{end}</span>'


def _bar(form: str, probability: float, colour: str) -> str:
    if probability < LEAST_SHOWN:
        return "<b></b>"
    return f'<b style="background:rgba({colour},{probability:.2f})">{form.format(100 * probability)}</b>'


# ---- models ----------------------------------------------------------------------------------------------------
def available_models(folder: Path | str | None = None) -> dict[str, Loader]:
    """What loads the span model of each finished run in a runs folder, by name, and MiniLM as it comes."""
    home = runs_folder(folder)
    loaders: dict[str, Loader] = {}
    for path in sorted(home.glob("*/run.json")):
        name = path.parent.name
        if _has_span_model(path.parent):
            loaders[name] = lambda name=name: load_trained(name, home)  # type: ignore[misc]
    return loaders | {"minilm as it comes, its span head untrained": _untrained}


def _has_span_model(home: Path) -> bool:
    with contextlib.suppress(RecordError):  # a broken run is offered: loading it says what is wrong
        experiment = read_experiment(home / "experiment.json")
        return experiment.task == "span" and (isinstance(experiment, Combination) or (home / "model").is_dir())
    return True


def _untrained() -> Loaded:
    return load.load_qa_model("minilm").eval().to(default_device()), load.load_tokenizer("minilm")


def examples(name: str = "courseqa") -> dict[str, tuple[str, str]]:
    """Questions to pick, each with its passage: the first validation question of each article of a data set."""
    rows = load_qa(name, "validation")
    first: dict[str, tuple[str, str]] = {}
    for title, question, context in zip(rows["title"], rows["question"], rows["context"], strict=True):
        first.setdefault(title, (question, context))
    return {f"{title}: {question}": (question, context) for title, (question, context) in first.items()}


NONE = "(none)"
OWN = "(your own)"


class Playground(Shown):
    """Fields for passage and question, one or two models to ask, and what they answer."""

    def __init__(
        self,
        choices: Mapping[str, Loader | Loaded] | None = None,
        picks: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """Ask the first model the first of the questions to pick.

        Args:
            choices: by name, a model and its tokenizer, or a function that loads them; `available_models()` if None.
            picks: by what is shown, a question and its passage; `examples()` if None.
        """
        self._choices = dict(available_models() if choices is None else choices)
        self._loaded: dict[str, Loaded] = {}
        self._picks = dict(examples() if picks is None else picks)
        names = list(self._choices)
        self.first = labelled(ipywidgets.Dropdown, "Model", options=names)
        self.second = labelled(ipywidgets.Dropdown, "Compare with", options=[NONE, *names])
        self.pick = labelled(ipywidgets.Dropdown, "Example", options=[*self._picks, OWN])
        wide = ipywidgets.Layout(width="100%", max_width="60em", height="10em")
        self.context = labelled(ipywidgets.Textarea, "Passage", layout=wide, continuous_update=False)
        self.question = labelled(ipywidgets.Text, "Question", continuous_update=False)
        self.ask = button("Ask", "ask the chosen models")
        self.output = ipywidgets.HTML()
        self.pick.observe(self._picked, "value")
        self.ask.on_click(lambda _: self._answer())
        fields = [self.first, self.second, self.pick, self.context, self.question, self.ask]
        self.box = ipywidgets.VBox([*fields, self.output])
        self._picked({"new": self.pick.value})

    def to_html(self) -> str:
        """The last question and what the models answered."""
        return str(self.output.value)

    def _picked(self, change: Mapping[str, Any]) -> None:
        if change["new"] in self._picks:
            self.question.value, self.context.value = self._picks[change["new"]]
            self._answer()

    def _answer(self) -> None:
        question, context = self.question.value, self.context.value
        if self._picks.get(self.pick.value) != (question, context):
            self.pick.value = OWN
        chosen = [name for name in (self.first.value, self.second.value) if name not in (None, NONE)]
        parts = [self._asked(name, question, context) for name in dict.fromkeys(chosen)]
        shown = _short(question).encode("utf-8", "replace").decode()  # half a character cannot be sent to a browser
        asked = paragraph(f"Question: {shown}", "qa-text")
        self.output.value = block(asked, f'<div class="qa-columns">{"".join(dict.fromkeys(parts))}</div>')

    def _asked(self, name: str, question: str, context: str) -> str:
        try:
            if name not in self._loaded:
                choice = self._choices[name]
                self._loaded[name] = choice() if callable(choice) else choice
            return answered_html(ask(*self._loaded[name], question, context), name)
        except CourseError as error:
            return problem(str(error))
