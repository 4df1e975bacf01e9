"""Reinforcement learning from human feedback on a language model, estimated from samples and trained through trl.

answers   answers in its own words, and their pairs
reward    a Bradley-Terry reward model on them
updates   DPO and GRPO: the one module that calls trl
record    the whole chain as an experiment, its record, and the course's chains
chain     running one; what the model is worth before and after
"""
