import pickle

import numpy as np
import pytest

from walt.text.tokenizer import END, PAD, Tokenizer, TokenizerError

CAPTIONS = [
    f"a game of {game}, the {thing} moves {way}"
    for game in ("Boxing", "Freeway", "Enduro", "Seaquest")
    for thing in ("player", "car", "boat")
    for way in ("left", "right", "up", "down")
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, 80)


def test_ends_pads_and_cuts(tokenizer):
    ids, mask = tokenizer(["a game of Boxing", "a game of Freeway, the player moves left and then some more words"], 12)
    assert ids.shape == mask.shape == (2, 12) and ids.dtype == np.int32 and mask.dtype == bool
    assert ids[0][mask[0]][-1] == END and np.all(ids[0][~mask[0]] == PAD) and not mask[0].all()
    assert mask[1].all() and ids[1][-1] == END


def test_different_captions_have_different_ids(tokenizer):
    ids, _ = tokenizer(CAPTIONS, 40)
    assert len({tuple(row) for row in ids.tolist()}) == len(CAPTIONS)


def test_same_captions_give_the_same_model_and_pickling_keeps_it(tokenizer):
    again = Tokenizer.train(CAPTIONS, 80)
    assert again.model_bytes == tokenizer.model_bytes and again.vocab_size == 80
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(CAPTIONS, 24)[0], tokenizer(CAPTIONS, 24)[0])


def test_pieces_are_what_the_ids_mean(tokenizer):
    pieces = tokenizer.pieces
    assert len(pieces) == 80 and pieces[PAD] == "<pad>" and pieces[END] == "</s>"
    ids, mask = tokenizer(["a game of Boxing"], 24)
    assert "".join(pieces[i] for i in ids[0][mask[0]][:-1]) == "▁a▁game▁of▁Boxing"


def test_too_large_a_vocabulary_is_reduced_with_a_word(capsys):
    tokenizer = Tokenizer.train(["ab ab", "ba ba"], 4000)
    assert tokenizer.vocab_size < 40
    assert "fewer than the 4000" in capsys.readouterr().out


@pytest.mark.parametrize("captions", [[], ["", "  "]])
def test_no_captions(captions):
    with pytest.raises(TokenizerError, match="at least one caption"):
        Tokenizer.train(captions, 100)


def test_too_small_a_vocabulary():
    with pytest.raises(TokenizerError, match="4 pieces"):
        Tokenizer.train(CAPTIONS, 4)


def test_not_a_model():
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        Tokenizer(b"")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        Tokenizer(b"nonsense")
