"""The course's chains of RLHF: the reward models and policies that notebook 04 compares, at each scale."""

from qa_helpers.rlhf.records import Chain, PolicyPlan, RewardPlan
from qa_helpers.scales import SCALES, SEEDS, Scale

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
# Far from the reference: larger steps, and a KL that costs next to nothing.
FAR = {"beta": 0.01, "learning_rate": 1e-4}


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


def far_chain(seed: int = 0, scale: Scale = SCALES["class"]) -> Chain:
    """The same with four of its reward models, the policy sent far from the reference: to see which ones hold."""
    rewards = tuple(plan for plan in REWARDS if plan.name in ("own", "people", "over-trained", "shuffled"))
    policies = tuple(PolicyPlan(name=f"far-{plan.name}", reward=plan.name, **FAR) for plan in rewards)
    changed = {"name": f"{scale.name}-rlhf-far-seed{seed}", "rewards": rewards, "policies": policies}
    return class_chain(seed, scale).model_copy(update=changed)


def named_chains() -> dict[str, Chain]:
    """The chains that have a name of their own, by name."""
    return {chain.name: chain for make in (class_chain, far_chain) for chain in map(make, SEEDS)}
