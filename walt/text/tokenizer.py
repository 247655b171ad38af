"""Captions to token ids, with SentencePiece or WordPiece; imports no jax, so that loader workers can use it."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int

PAD, END, UNKNOWN = 0, 1, 2  # as in T5


class TokenizerError(ValueError):
    """A tokenizer cannot be trained or read; the message says why."""


class Tokenizer:
    """A SentencePiece model. Picklable: what travels are the bytes of the model file.

    Ids 0, 1 and 2 are padding, end of text and unknown, as in T5.
    """

    def __init__(self, model_bytes: bytes):
        """Raises `TokenizerError` unless the bytes are a SentencePiece model."""
        self.model_bytes = model_bytes
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
            self._processor.encode("a")  # where there is no model in the bytes, only this says so
        except RuntimeError as error:
            raise TokenizerError(f"not a SentencePiece model: {error}") from error

    @classmethod
    def train(cls, captions: Sequence[str], vocab_size: int) -> Tokenizer:
        """A byte-pair model of at most `vocab_size` pieces, fewer where the captions do not give that many.

        The same captions in the same order give the same model. Raises `TokenizerError` when there is nothing to learn.
        """
        texts = [caption for caption in captions if caption.strip()]
        if not texts:
            raise TokenizerError("a tokenizer needs at least one caption that is not empty")
        try:
            return cls(_train(texts, vocab_size))
        except RuntimeError as error:
            # SentencePiece names the largest size that the text allows, and the smallest that covers its characters.
            largest = re.search(r"value <= (\d+)", str(error))
            if largest is None:
                raise TokenizerError(f"no tokenizer of {vocab_size} pieces can be trained: {error}") from error
        print(f"the captions give {largest.group(1)} token pieces, fewer than the {vocab_size} asked for")
        return cls(_train(texts, int(largest.group(1))))

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._processor.vocab_size()

    @property
    def pieces(self) -> tuple[str, ...]:
        """The piece of every id: what the rows of an embedding mean."""
        return tuple(self._processor.id_to_piece(list(range(self.vocab_size))))

    def __call__(self, texts: Sequence[str], length: int) -> tuple[Int[np.ndarray, "n l"], Bool[np.ndarray, "n l"]]:
        """(ids, mask) of texts cut or padded to `length` tokens; every text ends with the end token, even a cut one."""
        ids = np.full((len(texts), length), PAD, np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, pieces in enumerate(self._processor.encode(list(texts))):
            tokens = [*pieces[: length - 1], END]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in the text each of its tokens stands, as (begin, end) in characters, before anything is cut; the end token at its end."""
        places, data = self._processor.encode(text, return_type="proto"), text.encode()
        characters = [len(data[:begin].decode(errors="ignore")) for begin in (piece.begin for piece in places.pieces)]
        ends = [*characters[1:], len(text)]
        return [*zip(characters, ends, strict=False), (len(text), len(text))]

    def __reduce__(self) -> tuple:
        return Tokenizer, (self.model_bytes,)


class WordPiece:
    """A tokenizer.json of Hugging Face's `tokenizers`, such as BERT's WordPiece. Picklable: what travels are its bytes."""

    def __init__(self, model_bytes: bytes):
        """Raises `TokenizerError` unless the bytes are such a file, and where the package is not installed."""
        try:
            import tokenizers
        except ImportError as error:
            raise TokenizerError(
                "this tokenizer needs the package tokenizers; install it with `pip install walt[minilm]`"
            ) from error
        self.model_bytes = model_bytes
        with _rust_errors("not a tokenizer.json"):
            self._tokenizer = tokenizers.Tokenizer.from_buffer(model_bytes)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()

    @property
    def pieces(self) -> tuple[str, ...]:
        """The piece of every id."""
        ids = self._tokenizer.get_vocab()
        return tuple(sorted(ids, key=ids.__getitem__))

    def __call__(self, texts: Sequence[str], length: int) -> tuple[Int[np.ndarray, "n l"], Bool[np.ndarray, "n l"]]:
        """(ids, mask) of texts cut or padded to `length` tokens, first and last token included."""
        ids, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
        with _rust_errors("the tokenizer.json is of no use"):
            for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
                tokens = encoding.ids
                if len(tokens) > length:
                    tokens = [*tokens[: length - 1], tokens[-1]]
                ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return ids, mask

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in the text each of its tokens stands, as (begin, end) in characters, before anything is cut; first and last token included."""
        with _rust_errors("the tokenizer.json is of no use"):
            return list(self._tokenizer.encode(text).offsets)

    def __reduce__(self) -> tuple:
        return WordPiece, (self.model_bytes,)


@contextlib.contextmanager
def _rust_errors(problem: str) -> Iterator[None]:
    """Whatever the package raises becomes a `TokenizerError`; where it panics, that is no `Exception`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise TokenizerError(f"{problem}: {error}") from error


def read_tokenizer(model_bytes: bytes) -> Tokenizer | WordPiece:
    """The tokenizer that the bytes of a model file are: JSON or SentencePiece."""
    return WordPiece(model_bytes) if model_bytes.lstrip()[:1] == b"{" else Tokenizer(model_bytes)


def _train(texts: Sequence[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",  # unigram hardly joins letters where captions come from a few templates
        character_coverage=1.0,
        pad_id=PAD,
        eos_id=END,
        unk_id=UNKNOWN,
        bos_id=-1,
        num_threads=1,  # several threads give another model from run to run
        minloglevel=2,
    )
    return model.getvalue()
