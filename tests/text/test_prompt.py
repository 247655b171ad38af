import itertools

import pytest

from walt.text.prompt import MAX_WEIGHT, PromptError, cut, lost_words, parse_weights, token_weights
from walt.text.tokenizer import Tokenizer

CAPTIONS = ["a red ball moves left", "a blue box moves right", "the green paddle waits", "é and 日本"] * 8


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, 64)


def test_weights_are_taken_out_of_a_prompt():
    text, weights = parse_weights("a (red ball:1.5) and (boxes: .5 )!")
    assert text == "a red ball and boxes!"
    assert weights == (1.0,) * 2 + (1.5,) * 8 + (1.0,) * 5 + (0.5,) * 5 + (1.0,)
    assert parse_weights("(a:0)(b:2)") == ("ab", (0.0, 2.0))


@pytest.mark.parametrize("text", ["a (red) ball", "at 10:30 (noon: no)", "((:)", "a:1.5", "", "(a(b:c))"])
def test_other_parentheses_are_text(text):
    assert parse_weights(text) == (text, (1.0,) * len(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(ball:-1)", "out of range: 0 .* to 4"),
        (f"(ball:{MAX_WEIGHT + 1})", "out of range"),
        ("a ( :1.2) ball", "on no words"),
    ],
)
def test_weights_that_are_none(text, message):
    with pytest.raises(PromptError, match=message):
        parse_weights(text)


@pytest.mark.parametrize("text", [CAPTIONS[0], "a ball  é 日本x?", "日 é", "a"])
def test_spans_cover_the_text_token_by_token(tokenizer, text):
    spans = tokenizer.spans(text)
    assert len(spans) == tokenizer([text], 60)[1].sum() and spans[0][0] == 0 and spans[-1] == (len(text), len(text))
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def test_a_token_has_the_weight_of_its_words(tokenizer):
    prompt = parse_weights("a (red ball:1.5) é moves")
    weights = token_weights(prompt, tokenizer.spans(prompt.text), 60)
    for (begin, end), weight in zip(tokenizer.spans(prompt.text), weights):
        word = prompt.text[begin:end].strip()
        assert weight == (1.5 if word and begin < 10 and end > 2 else 1.0), word
    assert (weights[len(tokenizer.spans(prompt.text)) - 1 :] == 1).all()
    assert (token_weights(parse_weights("a red (ball:2)"), tokenizer.spans("a red ball"), 3) <= 2).all()


def test_lost_words_are_whole_and_as_they_stand_in_the_text(tokenizer):
    text = "a red ball moves left  unbelievably, and the rest"
    spans = tokenizer.spans(text)
    assert lost_words(text, spans, len(spans)) == "" and cut(spans, len(spans)) == spans
    assert lost_words(text, spans, len(spans) - 1) == "rest"
    inside = next(n for n, (_, end) in enumerate(spans) if text[:end].endswith("left  unb") or end > 25)
    assert lost_words(text, spans, inside + 2) == "unbelievably, and the rest"
    assert lost_words(text, spans, 1) == text and len(cut(spans, 3)) == 3


def test_word_pieces_have_spans_too():
    bert = pytest.importorskip("tokenizers")
    from walt.text.tokenizer import WordPiece

    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "ball": 4, "##s": 5}
    model = bert.Tokenizer(bert.models.WordPiece(words, unk_token="[UNK]"))
    model.pre_tokenizer = bert.pre_tokenizers.BertPreTokenizer()
    model.post_processor = bert.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer = WordPiece(model.to_str().encode())
    assert tokenizer.spans("a balls") == [(0, 0), (0, 1), (2, 6), (6, 7), (0, 0)]
    assert lost_words("a balls", tokenizer.spans("a balls"), 4) == "balls"
    assert list(token_weights(parse_weights("a (balls:2)"), tokenizer.spans("a balls"), 6)) == [1, 1, 2, 2, 1, 1]
