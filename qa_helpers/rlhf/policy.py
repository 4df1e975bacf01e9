"""A span model as a policy with a listed action set, and what listing it makes exact.

The actions of a question are the spans of its passage of 1 to `MAX_ANSWER_TOKENS` tokens. Action number
`start * MAX_ANSWER_TOKENS + length - 1` is the span of `length` tokens from the passage's token `start` on; the
numbers of spans that would end past the passage have probability 0 (log probability -inf). Log probabilities are
tensors (batch, actions): all below works on any listed actions, also on a toy's.

What it simplifies: a question is left out where its passage does not fit one window (`one_window` says how many are:
in CourseQA none, of SQuAD's 10,570 validation questions 183 with MiniLM's tokenizer). The start and the end are
independent but for the limits on a span, so that a policy cannot prefer one pair of them to what their separate
preferences make of it: the optimum may lie out of its reach.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from qa_helpers.common.device import autocast
from qa_helpers.data.rows import Row, check_rows
from qa_helpers.data.windows import Window, make_windows
from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS


@dataclass(frozen=True)
class Question:
    """A question whose passage fits one window, so that the spans of that window are all its answers."""

    row: Row  # with the columns of `qa_helpers.data.squad`
    window: Window

    @property
    def tokens(self) -> int:
        """Tokens of the passage."""
        return len(self.window.offsets)

    def characters(self, action: int) -> tuple[int, int]:
        """The passage characters (end exclusive) of a span."""
        start, length = to_span(action)
        first = self.window.first + start
        return self.window.characters(first, first + length - 1)

    def text(self, action: int) -> str:
        """The answer that a span is."""
        start, end = self.characters(action)
        return str(self.row["context"][start:end])


def one_window(rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast) -> tuple[list[Question], int]:
    """The questions whose passage fits one window, in their order, and how many are left out.

    Raises:
        DataError: if a row lacks a text or its answers are not in place (see `rows.check_rows`), or a question leaves
            no room for its passage.
    """
    rows = check_rows(rows)
    windows = make_windows(rows, tokenizer)
    counts = [0] * len(rows)
    for window in windows:
        counts[window.question] += 1
    kept = [window for window in windows if counts[window.question] == 1 and len(window.offsets)]
    return [Question(rows[window.question], window) for window in kept], len(rows) - len(kept)


def to_action(start: int, length: int) -> int:
    """The number of the span of `length` tokens from the passage's token `start` on.

    Raises:
        ValueError: if no action has that length.
    """
    if not (start >= 0 and 1 <= length <= MAX_ANSWER_TOKENS):
        raise ValueError(f"no action is {length} tokens long from token {start} on; the longest is {MAX_ANSWER_TOKENS}")
    return start * MAX_ANSWER_TOKENS + length - 1


def to_span(action: int) -> tuple[int, int]:
    """The first token and the length of an action's span, in tokens of the passage."""
    start, rest = divmod(action, MAX_ANSWER_TOKENS)
    return start, rest + 1


# ---- the distribution ------------------------------------------------------------------------------------------
def passage_mask(questions: Sequence[Question]) -> torch.Tensor:
    """Which of (batch, tokens of the longest passage) belong to a passage."""
    counts = torch.tensor([question.tokens for question in questions])
    return torch.arange(int(counts.max())) < counts[:, None]


def forward(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a span model over questions, and keep what belongs to the passages' tokens.

    Returns:
        Start and end logits, (batch, tokens of the longest passage), and the last layer's states, (batch, tokens,
        units), on the model's device. What stands past a shorter passage's end is of no meaning.
    """
    device = next(model.parameters()).device
    inputs = [question.window.inputs for question in questions]
    columns = {name: [each[name] for each in inputs] for name in inputs[0]}
    with autocast(device):
        output = model(**tokenizer.pad(columns, return_tensors="pt").to(device), output_hidden_states=True)
    first = torch.tensor([question.window.first for question in questions])[:, None]
    columns_of_passage = first + torch.arange(max(question.tokens for question in questions))
    columns_of_passage = columns_of_passage.clamp(max=output.start_logits.shape[1] - 1).to(device)
    start, end = (logits.float().gather(1, columns_of_passage) for logits in (output.start_logits, output.end_logits))
    rows = torch.arange(len(questions), device=device)[:, None]
    return start, end, output.hidden_states[-1][rows, columns_of_passage]


def policy(model: nn.Module, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> torch.Tensor:
    """A model's log probability of every action, (batch, actions), on its device and with its gradient."""
    start_logits, end_logits, _ = forward(model, tokenizer, questions)
    return span_log_probs(start_logits, end_logits, passage_mask(questions).to(start_logits.device))


def span_log_probs(
    start_logits: torch.Tensor, end_logits: torch.Tensor, passage: torch.Tensor, max_tokens: int = MAX_ANSWER_TOKENS
) -> torch.Tensor:
    """log pi(span) = start logit + end logit - log of the sum of exp of it over all allowed spans.

    Args:
        start_logits, end_logits: (batch, tokens).
        passage: (batch, tokens), true where a span may start and end; at least one token a row.
        max_tokens: length of the longest span.

    Returns:
        (batch, tokens * max_tokens), -inf where a span is not allowed.
    """
    ends, may_end = (
        nn.functional.pad(column, (0, max_tokens - 1)).unfold(1, max_tokens, 1) for column in (end_logits, passage)
    )
    scores = (start_logits[:, :, None] + ends).masked_fill(~(passage[:, :, None] & may_end), -torch.inf)
    return scores.flatten(1).log_softmax(1)


def sample(log_p: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` actions of each row, drawn independently: (batch, count). The generator is of the CPU."""
    drawn = torch.multinomial(log_p.detach().exp().cpu(), count, replacement=True, generator=generator)
    return drawn.to(log_p.device)


# ---- what listing the actions makes exact ----------------------------------------------------------------------
def expectation(log_p: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean of (batch, actions) values under a policy: (batch,). Actions of probability 0 count as nothing."""
    return (log_p.exp() * values.masked_fill(log_p.isneginf(), 0)).sum(1)


def exact_kl(log_p: torch.Tensor, log_ref: torch.Tensor) -> torch.Tensor:
    """KL(pi || ref) in nats, summed over all actions: (batch,). It is infinite where pi does what ref never does."""
    return expectation(log_p, log_p - log_ref)


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """Of each row, in nats: (batch,)."""
    return -expectation(log_p, log_p)


def objective(log_p: torch.Tensor, log_ref: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """What RLHF maximises, E[reward] - beta * KL(pi || ref), exactly: (batch,).

    Ziegler et al. 2019, arXiv:1909.08593, equation 2; Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, equation 2.

    Args:
        log_p, log_ref, reward: (batch, actions).
        beta: what a nat of divergence costs, in the reward's unit.
    """
    return expectation(log_p, reward) - beta * exact_kl(log_p, log_ref)


def closed_form(log_ref: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """The policy that maximises the objective: log pi*, pi*(y) = ref(y) exp(reward(y) / beta) / Z. (batch, actions).

    Rafailov et al. 2023 (DPO), arXiv:2305.18290, equation 4, and the literature that it names.
    """
    return (log_ref + reward / beta).log_softmax(1)


def optimum(log_ref: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """The objective's greatest value, beta * log Z: (batch,). How far a policy falls short is beta * KL(pi || pi*)."""
    return beta * (log_ref + reward / beta).logsumexp(1)


def best_of_n(log_ref: torch.Tensor, reward: torch.Tensor, n: int) -> torch.Tensor:
    """The log distribution of the best by reward among `n` samples, exactly: (batch, actions), in float64.

    Among equally good samples each is taken equally often. Best-of-n as a policy: Stiennon et al. 2020,
    arXiv:2009.01325; its KL to the reference is at most log n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879).
    """
    order = reward.masked_fill(log_ref.isneginf(), -torch.inf).argsort(1)
    log_p, value = log_ref.double().gather(1, order), reward.gather(1, order)
    changed = torch.nn.functional.pad(value.diff(dim=1) != 0, (1, 0), value=False)
    tie = changed.cumsum(1)  # equal rewards share a number
    here = torch.zeros_like(log_p).scatter_add(1, tie, log_p.exp()).gather(1, tie)
    upto = here.new_zeros(here.shape).scatter_reduce(1, tie, log_p.exp().cumsum(1), "amax").gather(1, tie)
    # P(the best lies in this tie) = upto**n - (upto - here)**n, written so that a small `here` loses no digits.
    share = (here / upto).clamp(max=1)
    log_best = n * upto.log() + (-torch.expm1(n * torch.log1p(-share))).log()
    best = torch.where(here > 0, log_p - here.log() + log_best, -torch.inf)
    return torch.full_like(best, -torch.inf).scatter(1, order, best).log_softmax(1)
