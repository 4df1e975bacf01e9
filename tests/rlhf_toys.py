"""What the tests of RLHF share: random policies, and questions whose reference is made up instead of asked."""

import numpy as np
import torch

from qa_helpers.common.device import describe_machine
from qa_helpers.data.windows import Window
from qa_helpers.evaluation.span_answers import MAX_ANSWER_TOKENS
from qa_helpers.experiment.record import Machine
from qa_helpers.rlhf.chain_record import Chain, ChainRun, Columns, PolicyPlan, PolicyResult, RewardResult
from qa_helpers.rlhf.measure import Reference
from qa_helpers.rlhf.policy import Question


def normal(*shape, seed, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def early(batch):
    """A reward that prefers answers that begin early in the passage."""
    start = torch.arange(batch.log_ref.shape[1]) // MAX_ANSWER_TOKENS
    return (-start / 20).expand_as(batch.log_ref)


def random_policy(batch, actions, seed, forbidden=0, scale=1.0):
    """Log probabilities (batch, actions) in float64, the last `forbidden` actions of each row never taken."""
    scores = normal(batch, actions, seed=seed, scale=scale)
    scores[:, actions - forbidden :] = -torch.inf
    return scores.log_softmax(1)


def made_up_question(name, tokens, title="An article"):
    """A passage of so many one-letter words; the answer of all three annotators is the second word."""
    context = " ".join(chr(97 + i % 26) for i in range(tokens))
    offsets = np.array([(2 * i, 2 * i + 1) for i in range(tokens)])
    answers = {"text": [context[2]] * 3, "answer_start": [2] * 3}
    row = {"id": name, "title": title, "context": context, "question": "Which?", "answers": answers}
    return Question(row, Window(0, {"input_ids": [0] * (tokens + 3)}, 2, offsets, [(3, 3)] * 3))


def made_up_references(count, units=8, seed=0):
    """References of passages of 5 to 12 tokens, two questions an article."""
    generator = np.random.default_rng(seed)
    references = []
    for i in range(count):
        tokens = int(generator.integers(5, 13))
        states, logits = (torch.from_numpy(generator.normal(size=(tokens, n))).float() for n in (units, 2))
        question = made_up_question(f"q{i}", tokens, f"article {i // 2}")
        references.append(Reference(question, states.half(), logits[:, 0].clone(), logits[:, 1].clone()))
    return references


def spans_of(tokens):
    """All actions of a passage of so many tokens."""
    return [
        start * MAX_ANSWER_TOKENS + length - 1
        for start in range(tokens)
        for length in range(1, min(MAX_ANSWER_TOKENS, tokens - start) + 1)
    ]


def made_up_chain_run(seed, name="chain", questions=12):
    """A chain's record of random numbers: a reference, one policy, and the optimum for beta 0.1."""
    rng = np.random.default_rng(seed)

    def columns(lift):
        return Columns(
            reward=(rng.normal(size=questions) + lift).tolist(),
            kl=(lift * rng.random(questions)).tolist(),
            exact_match=rng.integers(0, 2, questions).tolist(),
            f1=rng.random(questions).tolist(),
            agreement=(rng.integers(0, 4, questions) / 3).tolist(),
            tokens=rng.integers(1, 9, questions).tolist(),
        )

    ppo = PolicyResult(steps=[], progress=[], final=columns(0.5), own_reward=[0.0] * questions, seconds=0)
    reward = RewardResult(
        pairs={}, epochs=[], accuracy={}, accuracy_on_people={}, calibration_error=0, length_correlation=None, optima=[]
    )
    return ChainRun(
        chain=Chain(
            name=name, reference="a-run", policies=(PolicyPlan(name="ppo"),), betas=(0.1,), best_of=(), seed=seed
        ),
        machine=Machine.model_validate(describe_machine()),
        fingerprint="0" * 64,
        ancestors={},
        questions={},
        ids=[f"q{i}" for i in range(questions)],
        titles=[f"article {i // 3}" for i in range(questions)],
        reference=columns(0.0),
        rewards={"own": reward},
        policies={"ppo": ppo},
        optima={"0.1": columns(1.0)},
        best_of={},
    )
