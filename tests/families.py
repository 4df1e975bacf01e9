"""Tiny random models of many families, each with a tokenizer of its own kind, as a folder to load.

The vocabulary is trained on the texts at hand by the `tokenizers` library; the tokenizer around it is the one that
transformers builds for the family, with its normalizer, its splitting, its control tokens and its offsets.
"""

import json

import torch
import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers import models as vocabularies

MILL = "The mill at Eastbrook was built in 1871 by Zoe\u0308 Ahlstrom, a brewer."
ORCHARD = "Three sisters planted the orchard, 40 trees in all, and sold pears at Norden's market each October."


def asked(number, context, text, question):
    """A row in the form of `qa_helpers.data.squad`."""
    answers = {"text": [text], "answer_start": [context.index(text)]}
    return {"id": str(number), "title": "Village", "question": question, "context": context, "answers": answers}


ROWS = [
    asked(1, MILL, "1871", "When was the mill built?"),
    asked(2, MILL, "Zoe\u0308 Ahlstrom", "Who built it?"),
    asked(3, MILL, "a brewer", "What was she?"),
    asked(4, MILL, "Eastbrook", "Where does it stand?"),
    asked(5, ORCHARD, "Three sisters", "Who planted trees?"),
    asked(6, ORCHARD, "40 trees", "How large is it?"),
    asked(7, ORCHARD, "Norden", "Whose market is it?"),
    asked(8, ORCHARD, "October", "In which month?"),
]
TEXTS = [row[name] for row in ROWS for name in ("question", "context")]


def squad_file(rows):
    """Rows in SQuAD's form, as JSON text."""
    paragraphs = []
    for row in rows:
        answer = {"text": row["answers"]["text"][0], "answer_start": row["answers"]["answer_start"][0]}
        qa = {"id": row["id"], "question": row["question"], "answers": [answer]}
        paragraphs.append({"context": row["context"], "qas": [qa]})
    return json.dumps({"data": [{"title": "Village", "paragraphs": paragraphs}]})


# ---- the kinds of vocabulary ------------------------------------------------------------------------------------
def trained(vocabulary, splitting, trainer, special, size=100, normalizer=None, **options):
    """A vocabulary of the texts, as tokenizer.json holds it."""
    tokenizer = Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = splitting
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    options |= {"special_tokens": special, "vocab_size": len(special) + size, "show_progress": False}
    tokenizer.train_from_iterator(TEXTS, trainer(**options))
    return json.loads(tokenizer.to_str())["model"]


def unknown_of(special):
    return next((token for token in special if "unk" in token.lower()), None)


def word_pieces(special):
    """BERT's."""
    vocabulary, splitting = vocabularies.WordPiece(unk_token=unknown_of(special)), pre_tokenizers.BertPreTokenizer()
    normalizer = normalizers.BertNormalizer()
    return {"vocab": trained(vocabulary, splitting, trainers.WordPieceTrainer, special, normalizer=normalizer)["vocab"]}


def joined_bytes(special):
    """GPT-2's, RoBERTa's."""
    splitting = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = splitting.alphabet()
    size, trainer = len(alphabet) + 60, trainers.BpeTrainer
    model = trained(vocabularies.BPE(), splitting, trainer, special, size, initial_alphabet=alphabet)
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def sentence_pieces(special):
    """ALBERT's, DeBERTa v3's, XLM-R's: a log probability each; of control tokens 0, as if they were the likeliest."""
    vocabulary, splitting = vocabularies.Unigram(), pre_tokenizers.Metaspace()
    options = {"unk_token": unknown_of(special)}
    return {
        "vocab": [
            tuple(pair) for pair in trained(vocabulary, splitting, trainers.UnigramTrainer, special, **options)["vocab"]
        ]
    }


BERT = (word_pieces, "BertTokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
ROBERTA = (joined_bytes, "RobertaTokenizer", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
DEBERTA = (joined_bytes, "DebertaTokenizer", ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
GPT2 = (joined_bytes, "GPT2Tokenizer", ["<|endoftext|>"])
QWEN2 = (joined_bytes, "Qwen2Tokenizer", ["<|endoftext|>"])
ALBERT = (sentence_pieces, "AlbertTokenizer", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"])
DEBERTA_V3 = (sentence_pieces, "DebertaV2Tokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
XLM_R = (sentence_pieces, "XLMRobertaTokenizer", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
XLNET = (sentence_pieces, "XLNetTokenizer", ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"])
BIG_BIRD = (sentence_pieces, "BigBirdTokenizer", ["<pad>", "</s>", "<s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"])
MPNET = (word_pieces, "MPNetTokenizer", ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])
T5 = (sentence_pieces, "T5Tokenizer", ["<pad>", "</s>", "<unk>"])

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DRAWN = {"initializer_range": 0.15}  # wider than in large models, so that so narrow ones tell tokens apart
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # no dropout: what is learned by heart is
POSITIONS = {"max_position_embeddings": 400}
ROTARY = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "mlp_dropout": 0.0, "classifier_dropout": 0.0}

# The family, its tokenizer, what its configuration states beside the sizes; in other families' words where they differ.
MUST_LEARN = {
    "Bert": (BERT, CALM | POSITIONS),
    "Roberta": (ROBERTA, CALM | {"max_position_embeddings": 386, "type_vocab_size": 1}),
    "DistilBert": (
        BERT,
        POSITIONS
        | {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "dropout": 0.0, "attention_dropout": 0.0},
    ),
    "DebertaV2": (
        DEBERTA_V3,
        CALM
        | POSITIONS
        | {
            "relative_attention": True,
            "position_buckets": 32,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "Electra": (BERT, CALM | POSITIONS | {"embedding_size": 16}),
    "Albert": (ALBERT, CALM | POSITIONS | {"embedding_size": 16}),
    "MPNet": (MPNET, CALM | {"max_position_embeddings": 386}),
    "XLMRoberta": (XLM_R, CALM | {"max_position_embeddings": 386, "type_vocab_size": 1}),
    "ModernBert": (ROBERTA, ROTARY | POSITIONS | {"initializer_range": 0.05}),
}
OTHERS = {
    "BigBird": (BIG_BIRD, CALM | POSITIONS),
    "Deberta": (
        DEBERTA,
        CALM | POSITIONS | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    ),
    "XLNet": (XLNET, {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "dropout": 0.0}),
    "GPT2": (GPT2, {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "Qwen2": (QWEN2, {"num_key_value_heads": 2}),
    "FNet": (ALBERT, {"hidden_dropout_prob": 0.0} | POSITIONS),
    "Funnel": (BERT, {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1]}),
    "Longformer": (
        ROBERTA,
        CALM | {"max_position_embeddings": 514, "attention_window": [16, 16], "type_vocab_size": 1},
    ),
    "T5": (T5, {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}),
    "Splinter": (BERT, CALM | POSITIONS),
    "RoFormer": (BERT, CALM | POSITIONS | {"embedding_size": 32}),
}


def tokenizer_of(kind):
    """The tokenizer of a kind: (what trains its vocabulary, transformers' class, its control tokens)."""
    vocabulary, factory, special = kind
    return getattr(transformers, factory)(**vocabulary(special))


def save_family(family, folder, tokenizer=None, head="Model", **settings):
    """Save a tiny random model of a family and its tokenizer (or another) as a folder; returns its path."""
    kind, own = (MUST_LEARN | OTHERS)[family]
    tokenizer = tokenizer or tokenizer_of(kind)
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    ids = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}
    sizes = {} if "dim" in own or "d_model" in own or "n_embd" in own else SIZES
    config = getattr(transformers, f"{family}Config")(
        **DRAWN | {"vocab_size": len(tokenizer)} | ids | sizes | own | settings
    )
    torch.manual_seed(0)
    getattr(transformers, f"{family}{head}")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
