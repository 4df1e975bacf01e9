"""Reinforcement learning from human feedback on a span model, whose every action can be listed.

A model with a span head is a policy: given a question and its passage, it is a distribution over the passage's spans.
They are few enough to list, so that what other policies can only sample is exact here: the divergence from the
reference, the gradient, and the best policy that the objective allows.

    policy        the distribution, what follows from listing it, and the optimum
    losses        REINFORCE, PPO, GRPO, DPO
    preferences   candidates, how far people agree with them, pairs
    rankings      pairs that a reader ranked by hand
    reference     what the frozen reference says of each question, asked once
    reward        a Bradley-Terry reward model on the reference's states, and what it learned
    outcomes      what a policy is worth on held-out questions: reward, KL, EM, F1, length
    updates       the loops that change the policy
    record        a whole chain of these as an experiment, and its record
    plans         the course's chains
    chain         running one
    comparison    what the chains of several seeds say together
    ranking_store what people prefer: pairs of answers, a file of choices, agreement between users

On a language model, which writes its answers, the same chain is estimated from samples and trained through trl: see
`rlhf.language`.
"""
