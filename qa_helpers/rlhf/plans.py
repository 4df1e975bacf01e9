"""The course's chains of RLHF: the reward models and policies that notebook 04 compares, at each scale."""

from qa_helpers.experiment.catalogue import SCALES, SEEDS, Scale
from qa_helpers.experiment.spec import change
from qa_helpers.rlhf.record import Chain, PolicyPlan, RewardPlan

REWARDS = (
    RewardPlan(name="own"),
    RewardPlan(name="length-blind", length=False, balanced=True),
    RewardPlan(name="people", rankings="people"),  # has seen good answers only
    RewardPlan(name="over-trained", questions=1_000, epochs=10, stop_early=False),
    RewardPlan(name="poisoned", flipped=0.2),
    RewardPlan(name="shuffled", flipped=0.5),  # the control: rankings that say nothing
)
POLICIES = (
    PolicyPlan(name="ppo"),
    PolicyPlan(name="ppo-beta-0.3", beta=0.3),
    PolicyPlan(name="ppo-beta-1", beta=1.0),
    PolicyPlan(name="grpo", method="grpo"),
    PolicyPlan(name="grpo-as-published", method="grpo", penalty="sampled"),
    PolicyPlan(name="reinforce", method="reinforce"),
    PolicyPlan(name="exact", method="exact", penalty="exact"),
    PolicyPlan(name="dpo", method="dpo"),
    PolicyPlan(name="supervised", method="supervised"),
    PolicyPlan(name="ppo-length-blind", reward="length-blind"),
    PolicyPlan(name="ppo-people", reward="people"),
    PolicyPlan(name="ppo-over-trained", reward="over-trained"),
    PolicyPlan(name="ppo-shuffled", reward="shuffled"),
)
# Of the first seed only, to save half an hour of a CPU core for each other one.
ONCE = ("ppo-beta-0.3", "ppo-beta-1", "grpo-as-published", "ppo-length-blind")
# What a reward model must not be: taught by people's answers among themselves, and until it knows these by heart.
WEAK = RewardPlan(name="weak", rankings="people", stop_early=False)


def class_chain(seed: int = 0, scale: Scale = SCALES["class"]) -> Chain:
    """Everything that notebook 04 compares, on SQuAD, from the class baseline of that seed."""
    return Chain(
        name=f"{scale.name}-rlhf-seed{seed}",
        data="squad",
        reference=scale.baseline(seed=seed).name,
        rewards=REWARDS,
        policies=tuple(plan for plan in POLICIES if not seed or plan.name not in ONCE),
        seed=seed,
    )


def weak_chain(seed: int = 0, scale: Scale = SCALES["class"]) -> Chain:
    """PPO as in `class_chain`, but for a reward model that deserves no trust; and with ten times the price of KL."""
    policies = (PolicyPlan(name="ppo-weak", reward="weak"), PolicyPlan(name="ppo-weak-beta-1", reward="weak", beta=1.0))
    name = f"{scale.name}-rlhf-weak-seed{seed}"
    return change(class_chain(seed, scale), name=name, rewards=(REWARDS[0], WEAK), policies=policies)


def named_chains() -> dict[str, Chain]:
    """The chains that have a name of their own, by name."""
    return {chain.name: chain for make in (class_chain, weak_chain) for chain in map(make, SEEDS)}
