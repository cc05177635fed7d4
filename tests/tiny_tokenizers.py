"""Tiny tokenizers, trained on the spot: byte-level BPE with ChatML, and SentencePiece with its fast twin."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CORPUS = [
    "Natalia sold 48 clips in April and half as many in May. How many clips did she sell altogether?",
    "题目：小华手里有一个装满糖果的袋子，里面有 12 颗糖，他吃了 3 颗，还剩几颗？",
    "由题目可知：小华还剩 12 - 3 = 9 颗糖。答案是 9。",
    "USER: What is 3 plus 4? ASSISTANT: 3 plus 4 equals 7. The answer is 7.",
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def save_chatml_tokenizer(
    folder: Path, chat_template: str | None = CHATML, special: Sequence[str] = CHATML_SPECIAL, **tokens: Any
) -> Path:
    """Save a byte-level BPE fast tokenizer, ids below 400. Returns the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | tokens
    return _save_fast(tokenizer, folder, chat_template, **named)


def save_sentencepiece_model(folder: Path, **options: Any) -> Path:
    """Save a LLaMA-like tokenizer.model (BPE, byte fallback, <unk> <s> </s>) alone. Returns the folder."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    settings: dict[str, Any] = {
        "vocab_size": 400,
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    sentences = iter(CORPUS)
    SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, **(settings | options))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def save_fast_twin(sentencepiece_model: Path, folder: Path) -> Path:
    """Save the fast tokenizer that a SentencePiece BPE model describes, as LLaMA publishes it."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    model = SentencePieceProcessor(model_file=str(sentencepiece_model))
    ids = {model.id_to_piece(number): number for number in range(model.get_piece_size())}
    scores = {piece: model.get_score(number) for piece, number in ids.items()}
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    tokenizer = Tokenizer(models.BPE(ids, _merges(ids, scores), **options))
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _save_fast(tokenizer, folder, None, **named)


def save_gpt2(source: Path, folder: Path) -> Path:
    """Save the fast tokenizer of GPT-2's vocab.json and merges.txt. Returns the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(source / "vocab.json"), str(source / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    return _save_fast(tokenizer, folder, None, **named)


def change_config(folder: Path, **keys: Any) -> Path:
    """Change keys of a saved tokenizer_config.json. Returns the folder."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def _merges(ids: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best scored piece first."""
    found: Iterable[tuple[float, int, int, str, str]] = (
        (-scores[piece], ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece in ids
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    )
    return [(left, right) for *_, left, right in sorted(found)]


def _save_fast(tokenizer: Any, folder: Path, chat_template: str | None, **tokens: Any) -> Path:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **tokens)
    fast.save_pretrained(folder)
    return folder
