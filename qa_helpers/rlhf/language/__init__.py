"""Reinforcement learning from human feedback on a language model, estimated from samples and trained through trl.

answers   answers in its own words, and their pairs
reward    a Bradley-Terry reward model on them
updates   DPO and GRPO; what the model is worth before and after
record    the whole chain as an experiment, and its record
chain     the course's chains, and running one
"""
