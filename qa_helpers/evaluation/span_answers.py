"""Answers from a model with a span head: the best allowed span of a passage, found exactly."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import autocast, evaluation_mode, longest_first, progress_bar
from qa_helpers.common.io import ModelError
from qa_helpers.data.rows import Row, check_rows, row_id
from qa_helpers.data.windows import MAX_LENGTH, STRIDE, Window, make_windows

MAX_ANSWER_TOKENS = 30  # the usual limit; SQuAD answers of the validation set have a median of 2 words
BATCH_SIZE = 32  # windows a forward call


class Span(NamedTuple):
    """A candidate answer: characters of the passage that a model points at."""

    text: str
    start: int  # character in the passage
    score: float  # start logit + end logit
    probability: float  # among all allowed spans of all windows of the question


class TokenScore(NamedTuple):
    """A token of the passage, by its characters, and the probabilities (0 to 1) that the answer starts, or ends, there.

    They are a softmax over all tokens of the passage; of a token in several windows, the higher logit counts.
    """

    start: int
    end: int
    starts: float
    ends: float


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one question: the best span first in `n_best`."""

    id: str
    n_best: list[Span]
    windows: int = 1  # in so many, which overlap, the passage was read
    tokens: list[TokenScore] = field(default_factory=list)  # of the whole passage in order, if they are asked for

    @property
    def text(self) -> str:
        """The answer; empty where no span was allowed."""
        return self.n_best[0].text if self.n_best else ""

    @property
    def confidence(self) -> float:
        """The answer's probability among all allowed spans."""
        return self.n_best[0].probability if self.n_best else 0.0


# ---- span search -----------------------------------------------------------------------------------------------
class SpanBatch(NamedTuple):
    """The best spans of each row of a batch, best first. Shapes (batch, n_best), `log_total` (batch,)."""

    scores: torch.Tensor  # start logit + end logit; -inf where a row allows fewer spans
    starts: torch.Tensor  # token positions
    ends: torch.Tensor  # token positions, inclusive
    log_total: torch.Tensor  # log of the sum of exp(score) over all allowed spans


def best_spans(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    allowed: torch.Tensor,
    n_best: int = 20,
    max_tokens: int = MAX_ANSWER_TOKENS,
) -> SpanBatch:
    """The highest-scoring spans with start <= end < start + max_tokens and both ends allowed: an exact search.

    Args:
        start_logits, end_logits: (batch, tokens).
        allowed: (batch, tokens), true where a span may start and end, that is on the passage's tokens.
        n_best: spans a row; fewer if there are fewer than that in the whole band.
        max_tokens: length of the longest span.
    """
    start_logits = start_logits.float().masked_fill(~allowed, -torch.inf)
    end_logits = end_logits.float().masked_fill(~allowed, -torch.inf)
    padded = nn.functional.pad(end_logits, (0, max_tokens - 1), value=-torch.inf)
    # Each start's best end first: the n best spans of a row begin among its n best starts, so that all other
    # starts can be left out without losing any of them.
    best_end = nn.functional.max_pool1d(padded, max_tokens, stride=1)
    starts = (start_logits + best_end).topk(min(n_best, start_logits.shape[1]), dim=1).indices
    ends = padded.unfold(1, max_tokens, 1).gather(1, starts[:, :, None].expand(-1, -1, max_tokens))
    scores = (start_logits.gather(1, starts)[:, :, None] + ends).flatten(1)
    top, index = scores.topk(min(n_best, scores.shape[1]), dim=1)
    starts = starts.gather(1, index // max_tokens)
    return SpanBatch(top, starts, starts + index % max_tokens, _log_total(start_logits, padded, max_tokens))


def _log_total(start_logits: torch.Tensor, padded_end_logits: torch.Tensor, max_tokens: int) -> torch.Tensor:
    """log of the sum over all allowed spans of exp(start logit + end logit), without listing them: (batch,).

    In float64, where exp(-700) is still a number; spans further below the best start and end count as nothing.
    """
    start, end = start_logits.double(), padded_end_logits.double()
    start_top = start.amax(1, keepdim=True).clamp(min=-1e30)  # finite also where a row allows nothing
    end_top = end.amax(1, keepdim=True).clamp(min=-1e30)
    ends = (end - end_top).exp().unfold(1, max_tokens, 1).sum(2)
    total = ((start - start_top).exp() * ends).sum(1)
    return (total.log() + start_top[:, 0] + end_top[:, 0]).float()


def window_logits(
    model: nn.Module,
    windows: Sequence[Window],
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int = BATCH_SIZE,
    progress: str = "answering",
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Run the model over windows, those of like length together.

    Yields:
        The windows' indices, and their start and end logits as float32 on the CPU, (batch, tokens).

    Raises:
        ModelError: if these are no numbers.
    """
    device = next(model.parameters()).device
    with evaluation_mode(model), progress_bar(total=len(windows), desc=progress, unit="window") as bar:
        for chosen in longest_first([len(window) for window in windows], batch_size):
            inputs = [windows[i].inputs for i in chosen]
            batch = tokenizer.pad(inputs, padding_side="right", return_tensors="pt")
            with torch.inference_mode(), autocast(device):
                output = model(**batch.to(device))
            start_logits, end_logits = output.start_logits.float().cpu(), output.end_logits.float().cpu()
            if not (start_logits + end_logits).masked_fill(_padding(windows, chosen, start_logits), 0).isfinite().all():
                raise ModelError(
                    "the model gives no finite numbers, so that it has no answer: its weights are broken, or its "
                    "training diverged: lower the learning rate"
                )
            yield chosen, start_logits, end_logits
            bar.update(len(chosen))


class Answers(NamedTuple):
    """What `answer` found: a prediction a question, and the mean training loss over the windows (NaN if unlabelled)."""

    predictions: list[Prediction]
    loss: float


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    rows: Iterable[Row],
    n_best: int = 20,
    max_length: int = MAX_LENGTH,
    stride: int = STRIDE,
    progress: str = "answering",
    token_scores: bool = False,
) -> Answers:
    """Answer questions: the best allowed span over all windows of each.

    Args:
        model: an encoder with a span head, on any device.
        tokenizer: its tokenizer.
        rows: questions with `question` and `context`, and optionally `id` and `answers`.
        n_best: candidates kept a question.
        max_length, stride: of the windows, in tokens.
        progress: the progress bar's label.
        token_scores: whether each prediction also gets its `tokens`.

    Raises:
        DataError: if a row lacks a text or its answers are not in place (see `rows.check_rows`), or a question leaves
            no room for its passage.
        ModelError: if the model's tokenizer or its weights are of no use, see `make_windows` and `window_logits`.
    """
    rows = check_rows(rows)
    windows = make_windows(rows, tokenizer, max_length, stride)
    readings = [_Reading() for _ in rows]
    losses = np.full(len(windows), np.nan)
    for chosen, start_logits, end_logits in window_logits(model, windows, tokenizer, progress=progress):
        losses[chosen] = _losses(windows, chosen, start_logits, end_logits)
        mask = passage_mask(windows, chosen, start_logits.shape[1])
        spans = [column.tolist() for column in best_spans(start_logits, end_logits, mask, n_best)]
        for row, i in enumerate(chosen):
            reading = readings[windows[i].question]
            reading.add_spans(windows[i], *(column[row] for column in spans))
            if token_scores:
                reading.add_tokens(windows[i], start_logits[row].tolist(), end_logits[row].tolist())
    predictions = [
        reading.prediction(row_id(row, number), row["context"], n_best)
        for number, (row, reading) in enumerate(zip(rows, readings, strict=True))
    ]
    labelled = bool(rows) and all(row.get("answers") for row in rows)
    return Answers(predictions, float(losses.mean()) if labelled else float("nan"))


Characters = tuple[int, int]  # of a passage: the first, and the one after the last


@dataclass(frozen=True)
class _Reading:
    """What a model says of one question, gathered from overlapping windows, which propose some spans twice."""

    spans: dict[Characters, float] = field(default_factory=dict)  # their scores
    log_totals: list[float] = field(default_factory=list)  # of each window, as `best_spans` gives them
    starts: dict[Characters, float] = field(default_factory=dict)  # the tokens' start logits
    ends: dict[Characters, float] = field(default_factory=dict)  # the tokens' end logits

    def add_spans(
        self, window: Window, scores: Sequence[float], firsts: Sequence[int], lasts: Sequence[int], log_total: float
    ) -> None:
        """Take in a window's best spans, by their tokens."""
        self.log_totals.append(log_total)
        allowed = scores.index(-np.inf) if -np.inf in scores else len(scores)  # the best come first
        tokens = zip(firsts[:allowed], lasts[:allowed], strict=True)
        _keep_highest(self.spans, [window.characters(*pair) for pair in tokens], scores)

    def add_tokens(self, window: Window, start_logits: Sequence[float], end_logits: Sequence[float]) -> None:
        """Take in a window's logits, (tokens,) each."""
        tokens = [(start, end) for start, end in window.offsets.tolist()]
        for highest, logits in ((self.starts, start_logits), (self.ends, end_logits)):
            _keep_highest(highest, tokens, logits[window.first :])

    def prediction(self, id: str, context: str, n_best: int) -> Prediction:
        """What it comes to: the best spans of the passage, and its tokens' probabilities if their logits are there."""
        log_total = float(np.logaddexp.reduce(self.log_totals)) if self.log_totals else -np.inf
        best = sorted(self.spans.items(), key=lambda item: (-item[1], item[0]))[:n_best]
        spans = [
            Span(context[start:end], start, score, float(np.exp(score - log_total))) for (start, end), score in best
        ]
        tokens = sorted(self.starts)
        logits = torch.tensor([[side[token] for token in tokens] for side in (self.starts, self.ends)]).double()
        chances = logits.softmax(1).tolist()
        scores = [TokenScore(*token, *pair) for token, *pair in zip(tokens, *chances, strict=True)]
        return Prediction(id, spans, len(self.log_totals), scores)


def _keep_highest(highest: dict[Characters, float], where: Iterable[Characters], values: Sequence[float]) -> None:
    for characters, value in zip(where, values, strict=False):  # of the values, those of padding come last
        highest[characters] = max(value, highest.get(characters, -np.inf))


def out_of_reach(rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast) -> int:
    """How many questions have no given answer that is a span of at most `MAX_ANSWER_TOKENS` tokens.

    No answer of a model equals one that is given for these, but for what normalising takes away.
    """
    # No tokenizer makes more tokens of an answer than it has bytes.
    long = [row for row in rows if min(len(text.encode()) for text in row["answers"]["text"]) >= MAX_ANSWER_TOKENS]
    reached = {
        window.question
        for window in make_windows(long, tokenizer)
        if any(span != (0, 0) and span[1] - span[0] < MAX_ANSWER_TOKENS for span in window.spans)
    }
    return len(long) - len(reached)


def passage_mask(windows: Sequence[Window], chosen: Sequence[int], tokens: int) -> torch.Tensor:
    """Which tokens of the chosen windows, padded to this many, stand for text of the passage: (windows, tokens).

    A token of white space alone does not.
    """
    mask = torch.zeros(len(chosen), tokens, dtype=torch.bool)
    for row, i in zip(mask, chosen, strict=True):
        begins, ends = windows[i].offsets.T
        row[windows[i].first : windows[i].first + len(begins)] = torch.from_numpy(begins < ends)
    return mask


def _padding(windows: Sequence[Window], chosen: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    return torch.arange(logits.shape[1]) >= torch.tensor([[len(windows[i])] for i in chosen])


def _losses(
    windows: Sequence[Window], chosen: Sequence[int], start_logits: torch.Tensor, end_logits: torch.Tensor
) -> list[float]:
    """The span head's training loss a window: mean cross-entropy of start and end over its own tokens."""
    padding = _padding(windows, chosen, start_logits)
    labels = torch.tensor([(windows[i].start, windows[i].end) for i in chosen])
    both = [
        nn.functional.cross_entropy(logits.masked_fill(padding, -torch.inf), label, reduction="none")
        for logits, label in zip((start_logits, end_logits), labels.unbind(1), strict=True)
    ]
    losses: list[float] = ((both[0] + both[1]) / 2).tolist()
    return losses
