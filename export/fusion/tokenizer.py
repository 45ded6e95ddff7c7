"""The decoder's word pieces: byte-pair encoding in which any text can be written."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edge_ravlm.runtime.fusion.layout import SPECIAL, UNKNOWN


def fit_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Learn pieces from texts (Sennrich et al. 2016, arXiv:1508.07909); what no piece spells is spelt in bytes.

    Digits stand alone, so that any number is a row of known pieces.

    Args:
        texts: sentences.
        vocab: pieces, the special ones and the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN], byte_fallback=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[*(AddedToken(name, special=True) for name in SPECIAL), *spelt],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer knows no other way to put bytes into the vocabulary; as special tokens they would not be written.
    plain = msgspec.json.decode(tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(msgspec.json.encode(plain).decode())
