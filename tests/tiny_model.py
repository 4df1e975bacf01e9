"""A random language model of SmolLM2's kind, small enough to be trained within a test."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_language_model(chat):
    """In float32, with the vocabulary of the tokenizer `chat`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(chat),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=chat.bos_token_id,
        eos_token_id=chat.eos_token_id,
        pad_token_id=chat.pad_token_id,
    )
    return LlamaForCausalLM(config)
