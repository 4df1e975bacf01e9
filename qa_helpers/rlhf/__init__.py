"""Reinforcement learning from human feedback on a span model, whose every action can be listed.

A model with a span head is a policy: given a question and its passage, it is a distribution over the passage's spans.
They are few enough to list, so that what other policies can only sample is exact here: the divergence from the
reference, the gradient, and the best policy that the objective allows.

    policy         the distribution, what follows from listing it, and the optimum
    losses         REINFORCE, PPO, GRPO, DPO
    ranking_store  what people prefer: pairs of answers, a file of choices, agreement between users
    preferences    candidates, how far people agree with them, pairs, also of what a reader ranked by hand
    measure        what the frozen reference says, asked once; what a policy is worth beside it
    reward         a Bradley-Terry reward model on the reference's states, and what it learned
    updates        the loops that change the policy
    chain_record   a whole chain of these as an experiment, its record, and the course's chains
    chain          running one

On a language model, which writes its answers, the same chain is estimated from samples and trained through trl: see
`rlhf.language`.
"""
