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
    records       a whole chain of these as an experiment, and its record
    plans         the course's chains
    chains        running one

On a language model, which writes its answers, the same chain is estimated from samples and trained through trl:

    language_answers   answers in its own words, and their pairs
    language_reward    a Bradley-Terry reward model on them
    language_updates   DPO and GRPO; what the model is worth before and after
    language_records   the whole chain as an experiment, and its record
    language_chains    the course's chains, and running one
"""
