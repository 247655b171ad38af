"""Which weights a run may start from."""

import pytest

from walt.config import ConfigError
from walt.experiment.weights import check_same_tokens
from walt.generation.bundle import Bundle, Component, write_bundle
from walt.generation.init_from import InitRules
from walt.text.tokenizer import Tokenizer

CAPTIONS = ["a red ball moves left", "a blue box moves right", "the green paddle waits"]
# A field that SentencePiece's format leaves to others (number 200, empty): other bytes, the same pieces.
NOTE = b"\xc2\x0c\x00"


def test_a_text_encoder_goes_with_the_pieces_of_its_tokenizer_and_not_with_the_bytes_of_a_file(tmp_path):
    tokenizer, other = Tokenizer.train(CAPTIONS, 40), Tokenizer.train(CAPTIONS, 39)
    write_bundle(Bundle({"transformer": Component({}, {})}, tokenizer=tokenizer.model_bytes), tmp_path / "bundle")
    rules = InitRules(str(tmp_path / "bundle"))
    again = Tokenizer(tokenizer.model_bytes + NOTE)
    assert again.pieces == tokenizer.pieces
    check_same_tokens(rules, tokenizer)
    check_same_tokens(rules, again)
    with pytest.raises(ConfigError, match="trained with other tokens than these captions give"):
        check_same_tokens(rules, other)
    check_same_tokens(InitRules(str(tmp_path / "bundle"), skip=("text_encoder",)), other)
