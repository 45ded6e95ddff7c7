"""Answers in words, with a decoder small enough to reason about: it copies the passage that fits, to its end.

It begins with the passages whose cosines are high or that the second hop found, goes on where ``continues`` says, the
more where its own past agrees, ends where nothing goes on, and writes NONE where no passage fits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from edge_ravlm.bundle import Bundle, write_bundle
from edge_ravlm.cli import run
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.frames import Frame
from edge_ravlm.manifest import Fusion, FusionSpec, Model, Space
from edge_ravlm.runtime import pipeline
from edge_ravlm.runtime.answer import UNKNOWN, Level
from edge_ravlm.runtime.deadline import Pace
from edge_ravlm.runtime.encoders import ImageEncoder
from edge_ravlm.runtime.fusion.decoder import FusionDecoder, Generated
from edge_ravlm.runtime.fusion.layout import END, NONE, SPECIAL, Passage, Prompt
from edge_ravlm.runtime.memory import Where
from edge_ravlm.runtime.opening import load
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.transfer import reembed

pytestmark = pytest.mark.export  # onnx builds the graphs

GENEROUS_MS = 600_000.0
BINS, LATER, BINS_QUESTION = "the bins go out on monday", "the bins go out on friday", "when do the bins go out?"
KETTLE, BOUGHT, BOUGHT_QUESTION = "a red kettle", "the kettle was bought in bremen", "where was this bought?"
WORDS = sorted(
    set(
        f"{BINS} {LATER} {KETTLE} {BOUGHT} red hat seven red box one blue box two the gate is open closed milk and "
        "bread are bought on monday one colourful test card a yard behind the house".split()
    )
)

PREFILL = """
<ir_version: 10, opset_import: ["" : 18]>
prefill (int64[b,t] tokens, int64[b,t] roles, float[b,9] features, float[b,256] products, float[1,c,d] cells)
  => (float[2,2,m,2] keys, float[2,2,m,2] values, float[m,4] pointers, float[m] mask)
<int64[1] separator = {4}, int64[1] told_from = {3}, int64[1] pad = {0}, int64[4] shift = {0, 1, 0, -1},
 int64[1] i1 = {1}, int64[1] i4 = {4}, int64[1] i6 = {6}, int64[1] flat = {-1}, int64[1] two = {2},
 float image_from = {0.6}, float text_from = {0.4}, float ten = {10.0}, float zero = {0.0}, float never = {-10000.0},
 int64[4] spread = {1, 1, -1, 1}, int64[4] wide = {2, 2, 1, 2}>
{
  before = Pad(tokens, shift)
  is_start = Equal(before, separator)
  starts = Cast<to = 1>(is_start)
  image = Gather<axis = 1>(features, i1)
  text = Gather<axis = 1>(features, i4)
  hop = Gather<axis = 1>(features, i6)
  image_over = Sub(image, image_from)
  image_fits = Relu(image_over)
  text_over = Sub(text, text_from)
  text_fits = Relu(text_over)
  hop_fits = Mul(hop, ten)
  fits = Sum(image_fits, text_fits, hop_fits)
  scored = Mul(starts, fits)
  is_told = GreaterOrEqual(roles, told_from)
  told = Cast<to = 1>(is_told)
  written = Cast<to = 1>(tokens)
  is_pad = Equal(tokens, pad)
  padding = Where(is_pad, never, zero)
  summed = ReduceSum<keepdims = 0>(cells, two)
  nothing_2d = Mul(summed, zero)
  nothing = Reshape(nothing_2d, flat)
  scored_flat = Reshape(scored, flat)
  told_flat = Reshape(told, flat)
  written_flat = Reshape(written, flat)
  padding_flat = Reshape(padding, flat)
  scored_m = Concat<axis = 0>(scored_flat, nothing)
  told_m = Concat<axis = 0>(told_flat, nothing)
  written_m = Concat<axis = 0>(written_flat, nothing)
  mask = Concat<axis = 0>(padding_flat, nothing)
  scored_1 = Unsqueeze(scored_m, i1)
  told_1 = Unsqueeze(told_m, i1)
  written_1 = Unsqueeze(written_m, i1)
  pointers = Concat<axis = 1>(scored_1, told_1, written_1, written_1)
  thin = Reshape(written_m, spread)
  keys = Expand(thin, wide)
  values = Identity(keys)
}
"""

STEP = """
<ir_version: 10, opset_import: ["" : 18]>
step (int64[n] last, int64[1] position, float[2,n,2,p,2] past_keys, float[2,n,2,p,2] past_values,
      float[2,2,m,2] keys, float[2,2,m,2] values, float[m,4] pointers, float[m] mask, float[n,m,2] continues)
  => (float[n,v] words, float[n,m] copies, float[2,n,2,q,2] new_keys, float[2,n,2,q,2] new_values)
<int64[5] thin = {1, -1, 1, 1, 1}, int64[5] wide = {2, 1, 2, 1, 2}, int64[1] minus2 = {-2}, int64[1] minus1 = {-1},
 int64[1] axis3 = {3}, int64[4] but_n = {0, 2, 3, 4}, int64[2] column = {-1, 1}, int64[2] shift = {2, -2},
 int64[1] first = {0}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64[1] along = {1},
 float nine = {9.0}, float zero = {0.0}, float one = {1.0}, float rest_of = {0.01}, float readable_from = {-1.0},
 float[1,VOCABULARY] none = {ONLY_NONE}, float[1,VOCABULARY] end = {ONLY_END}>
{
  last_float = Cast<to = 1>(last)
  last_thin = Reshape(last_float, thin)
  new = Expand(last_thin, wide)
  nothing = Mul(new, zero)
  new_keys = Concat<axis = 3>(past_keys, new)
  new_values = Concat<axis = 3>(past_values, new)
  history = Concat<axis = 3>(nothing, new_keys)
  earlier_5d = Slice(history, minus2, minus1, axis3)
  earlier_1d = ReduceMean<keepdims = 0>(earlier_5d, but_n)
  earlier_int = Cast<to = 7>(earlier_1d)
  earlier = Reshape(earlier_int, column)
  written = Gather<axis = 1>(pointers, i2)
  written_int = Cast<to = 7>(written)
  two_before = Pad(written_int, shift)
  is_agreed = Equal(two_before, earlier)
  agreed = Cast<to = 1>(is_agreed)
  goes_on = Gather<axis = 2>(continues, i0)
  goes_on_surely = Gather<axis = 2>(continues, i1)
  bonus = Mul(goes_on_surely, agreed)
  bonus_9 = Mul(bonus, nine)
  going_on = Add(goes_on, bonus_9)
  start = Gather<axis = 1>(pointers, i0)
  is_first = Equal(position, first)
  starting = Where(is_first, start, going_on)
  told = Gather<axis = 1>(pointers, i1)
  is_readable = Greater(mask, readable_from)
  readable = Cast<to = 1>(is_readable)
  allowed = Mul(told, readable)
  raw = Mul(starting, allowed)
  total = ReduceSum<keepdims = 1>(raw, along)
  whole = Add(total, rest_of)
  copies = Div(raw, whole)
  rest = Div(rest_of, whole)
  closing = Where(is_first, none, end)
  words = Mul(rest, closing)
}
"""


def graph(text: str, vocabulary: int = 0) -> bytes:
    import onnx

    ones = {"ONLY_NONE": 3, "ONLY_END": 2}
    for name, place in ones.items():
        text = text.replace(name, ", ".join("1.0" if i == place else "0.0" for i in range(vocabulary)))
    model = onnx.parser.parse_model(text.replace("VOCABULARY", str(vocabulary)))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tokenizer(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*special, *WORDS))}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(list(special))
    return made


def build(plain: Bundle, folder: Path, *, special: tuple[str, ...] = SPECIAL, **changes: Any) -> Bundle:
    """The starter with the copying decoder."""
    contents = {record.path: plain.read(record.path) for record in plain.manifest.files}
    words = tokenizer(special)
    spec = FusionSpec(
        tokenizer="fusion-tokenizer.json", entries=2, longest=12, abstain_above=0.9, layers=2, heads=2, width=4
    )
    files = ("models/fusion-prefill.cpu-u8.onnx", "models/fusion-step.cpu-u8.onnx")
    graphs = (graph(PREFILL), graph(STEP, words.get_vocab_size()))
    contents |= {spec.tokenizer: words.to_str().encode(), **dict(zip(files, graphs, strict=True))}
    flavor = msgspec.structs.replace(plain.manifest.flavor("cpu-u8"), fusion=Fusion(*map(Model, files)))
    manifest = msgspec.structs.replace(
        plain.manifest, flavors={"cpu-u8": flavor}, fusion=msgspec.structs.replace(spec, **changes)
    )
    return write_bundle(folder, manifest, contents)


@pytest.fixture(scope="module")
def bundle(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(plain, tmp_path_factory.mktemp("talking") / "bundle")


@pytest.fixture(scope="module")
def talking(bundle: Bundle) -> Iterator[Ravlm]:
    with load(bundle, threads=1, budget_ms=GENEROUS_MS) as opened:
        yield opened


@pytest.fixture
def ravlm(talking: Ravlm) -> Iterator[Ravlm]:
    """With an empty memory."""
    yield talking
    talking.forget([entry.id for entry in talking.memory.entries()])


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> Iterator[FusionDecoder]:
    opened = FusionDecoder(bundle, "cpu-u8", threads=1)
    yield opened
    opened.close()


def tell(ravlm: Ravlm, text: str) -> int:
    return ravlm.memory.add([ravlm.entry(None, text)])[0]


# -- the decoder alone ---------------------------------------------------------------------------------------------

CELLS = np.zeros((1, 49, 320), np.float32)


def write(
    decoder: FusionDecoder, passages: dict[str, float], question: str = "which box?", **options: Any
) -> Generated:
    """Answer from texts with these cosines to the question."""
    prompt = decoder.lay_out(question, [Passage(text, text_cosine=cosine) for text, cosine in passages.items()])
    return decoder.generate(decoder.prefill(prompt, CELLS), **options)


def test_an_answer_is_copied_token_by_token_to_its_end(decoder: FusionDecoder) -> None:
    written = write(decoder, {"red hat seven": 0.2, "blue box two": 0.9})
    assert (written.text, written.complete) == ("blue box two", True)
    assert len(written.tokens) == 3
    np.testing.assert_allclose(written.weights, [0, 1], atol=0.01)
    assert written.abstention == pytest.approx(0.01 / 0.51, abs=1e-4)


def test_the_confidence_is_the_product_of_the_tokens_probabilities(decoder: FusionDecoder) -> None:
    written = write(decoder, {"blue box two": 0.9})
    assert written.confidence == pytest.approx(0.5 / 0.51 * 1 / 1.01 * 10 / 10.01, rel=1e-4)


def test_what_two_passages_say_alike_counts_for_both(decoder: FusionDecoder) -> None:
    written = write(decoder, {"red box one": 0.6, "a red hat": 0.4, "red box": 0.8})
    assert written.text.startswith("red box")
    first = 0.2 / 0.6  # of the first token; "box" is shared evenly, what ends it is nobody's
    assert written.weights[0] > 0
    assert written.weights[1] == 0
    assert written.weights.sum() == pytest.approx(1, abs=0.02)
    assert written.weights[0] == pytest.approx((first + 0.5 + 1) / 3, abs=0.02)


class Scripted:
    """A step that says what it is told to, and remembers what it was asked."""

    def __init__(self, *steps: tuple[dict[int, float], dict[int, float]]) -> None:
        self.steps, self.masks = list(steps), list[Any]()

    def run(self, feeds: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
        self.masks.append(feeds["mask"])
        words, copies = np.zeros((1, len(WORDS) + 6), np.float32), np.zeros((1, len(feeds["mask"])), np.float32)
        own, copied = self.steps.pop(0)
        words[0, list(own)], copies[0, list(copied)] = list(own.values()), list(copied.values())
        return [words, copies, feeds["past_keys"], feeds["past_values"]]


ENDING = {END: 0.05}
PASSAGES = [Passage("red hat seven", text_cosine=0.9), Passage("blue box two", text_cosine=0.8)]


def scripted(
    decoder: FusionDecoder, monkeypatch: pytest.MonkeyPatch, *steps: tuple[dict[int, float], dict[int, float]]
) -> tuple[Prompt, Scripted]:
    script = Scripted(*steps)
    monkeypatch.setattr(decoder, "_step", script)
    return decoder.lay_out("which box?", PASSAGES), script


def place(prompt: Prompt, word: str) -> int:
    """Where a word of an entry stands."""
    token = (*SPECIAL, *WORDS).index(word)
    return int(np.flatnonzero((prompt.source == token) & prompt.told)[0])


def test_what_is_copied_stands_word_for_word_in_one_entry(
    decoder: FusionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = decoder.lay_out("which box?", PASSAGES)
    red, hat, seven, box, two = (place(prompt, word) for word in ("red", "hat", "seven", "box", "two"))
    never_read = (*SPECIAL, *WORDS).index("milk")
    prompt, _ = scripted(
        decoder,
        monkeypatch,
        ({NONE: 0.1}, {red: 0.9}),
        (ENDING, {box: 0.6, hat: 0.3}),  # "red box" stands nowhere
        ({never_read: 0.8, **ENDING}, {two: 0.1, seven: 0.06}),
        ({never_read: 0.9, **ENDING}, {box: 0.05}),  # nothing stands behind "seven"
    )
    written = decoder.generate(decoder.prefill(prompt, CELLS))
    assert (written.text, written.complete) == ("red hat seven", True)
    assert written.confidence == pytest.approx(0.9 * 0.3 * 0.06 * 0.05)
    np.testing.assert_allclose(written.weights, [1, 0], atol=0.01)


def test_a_copy_begins_and_ends_with_a_word(decoder: FusionDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = decoder.lay_out("which box?", PASSAGES)
    red, hat, seven = (place(prompt, word) for word in ("red", "hat", "seven"))
    steps = ({NONE: 0.1}, {hat: 0.5, red: 0.3}), ({END: 0.9}, {hat: 0.1}), ({END: 0.5}, {seven: 0.4})
    for within, text in ((False, "hat"), (True, "red hat")):  # as if "hat" went on with the word "red"
        prompt, _ = scripted(decoder, monkeypatch, *steps)
        prompt.within.reshape(-1)[hat] = within
        assert decoder.generate(decoder.prefill(prompt, CELLS)).text == text


def test_its_own_words_are_free(decoder: FusionDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = decoder.lay_out("which box?", PASSAGES)
    open_, red = (*SPECIAL, *WORDS).index("open"), place(prompt, "red")
    prompt, _ = scripted(
        decoder, monkeypatch, ({open_: 0.8}, {red: 0.1}), ({END: 0.1}, {red: 0.6}), ({END: 0.9}, {red: 0.1})
    )
    written = decoder.generate(decoder.prefill(prompt, CELLS))
    assert written.text == "open red"
    np.testing.assert_allclose(written.weights, [0.5, 0], atol=0.01)


def test_entries_whose_pictures_are_less_alike_count_less_for_the_words_and_not_for_abstaining(
    decoder: FusionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [Passage("red hat seven", 0.9), Passage("blue box two", 0.65), Passage("red box", 0.3, shared=0.0)]
    prompt = decoder.lay_out("which box?", passages)
    red = place(prompt, "red")
    _, script = scripted(decoder, monkeypatch, ({NONE: 0.3}, {red: 0.5}), ({NONE: 0.1}, {red: 0.9}), ({END: 0.9}, {}))
    written = decoder.generate(decoder.prefill(prompt, CELLS), abstain_above=0.4)
    assert (written.text, written.abstention) == ("red", pytest.approx(0.3))
    plain, *doubted = (mask[: prompt.source.size].reshape(prompt.tokens.shape) for mask in script.masks)
    for mask in doubted:
        np.testing.assert_allclose((plain - mask)[:, 0], [0, 0, 2.5, 0], atol=1e-5)
    _, script = scripted(decoder, monkeypatch, ({NONE: 0.5}, {red: 0.5}))
    assert decoder.generate(decoder.prefill(prompt, CELLS), abstain_above=0.4).text == ""
    assert len(script.masks) == 1, "what is not answered is not written"


@pytest.mark.parametrize(("steps", "text"), [(0, ""), (1, "red"), (2, "blue"), (3, "blue box")])
def test_with_time_for_one_step_alone_the_first_token_is_taken_without_doubt(
    decoder: FusionDecoder, monkeypatch: pytest.MonkeyPatch, steps: int, text: str
) -> None:
    passages = [Passage("red hat seven", 0.65), Passage("blue box two", 0.9)]
    prompt = decoder.lay_out("which box?", passages)
    red, blue, box = (place(prompt, word) for word in ("red", "blue", "box"))
    _, script = scripted(decoder, monkeypatch, ({}, {red: 0.9}), ({}, {blue: 0.9}), ({}, {box: 0.9}))
    monkeypatch.setattr(decoder, "step_pace", Pace(10.0))
    written = decoder.generate(decoder.prefill(prompt, CELLS), left_ms=lambda: 10.0 * (steps - len(script.masks)))
    assert (written.text, written.complete, len(script.masks)) == (text, False, steps)


def test_following_several_answers_finds_a_likelier_one_than_the_likeliest_token_each_time(
    decoder: FusionDecoder,
) -> None:
    passages = {"red hat seven": 0.7, "red box one": 0.7, "blue box two": 0.8}
    greedy, *wider = [write(decoder, passages, beams=beams) for beams in (1, 2, 4)]
    assert greedy.text.startswith("red ")
    for written in wider:
        assert written.text == "blue box two"
        assert written.confidence > greedy.confidence
        np.testing.assert_allclose(written.weights, [0, 0, 1], atol=0.1)


def test_where_nothing_fits_it_says_so_and_is_not_asked_further(decoder: FusionDecoder) -> None:
    for passages in ({}, {"red hat seven": 0.1}):
        written = write(decoder, passages, abstain_above=0.9)
        assert written.abstention == pytest.approx(1)
        assert (written.text, written.tokens, written.confidence) == ("", (), 0.0)
        assert written.weights.shape == (len(passages),)
    guessed = write(decoder, {"red hat seven": 0.41}, abstain_above=0.9)
    assert guessed.abstention == pytest.approx(0.5, abs=0.01)
    assert guessed.text == "red hat seven"


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_when_time_is_up_it_gives_what_it_has(decoder: FusionDecoder, steps: int, beams: int) -> None:
    left = iter([GENEROUS_MS] * steps + [0.0] * 9)
    write(decoder, {"blue box two": 0.9})  # so that it knows what a step takes
    written = write(decoder, {"blue box two": 0.9}, left_ms=lambda: next(left), beams=beams)
    assert written.text == " ".join(["blue", "box", "two"][:steps])
    assert written.complete == (steps == 4), "the fourth step ends it"
    assert (written.confidence > 0) == (steps > 0)


def test_the_longest_answer_is_the_manifests(plain: Bundle, tmp_path: Path) -> None:
    short = FusionDecoder(build(plain, tmp_path / "b", longest=2), "cpu-u8", threads=1)
    written = write(short, {"blue box two": 0.9})
    assert (written.text, written.complete) == ("blue box", False)


@pytest.mark.parametrize("beams", [0, 5, -1])
def test_other_numbers_of_beams_are_refused(decoder: FusionDecoder, beams: int) -> None:
    with pytest.raises(UsageError, match="beams: expected 1 to 4"):
        write(decoder, {}, beams=beams)


def test_a_tokenizer_with_other_special_tokens_is_refused(plain: Bundle, tmp_path: Path) -> None:
    swapped = (*SPECIAL[:2], SPECIAL[3], SPECIAL[2], *SPECIAL[4:])
    with pytest.raises(BundleError, match=r"expected \[PAD\], .* got 0, 1, 3, 2, 4, 5"):
        FusionDecoder(build(plain, tmp_path / "b", special=swapped), "cpu-u8")


def test_a_closed_decoder_says_so(bundle: Bundle) -> None:
    closed = FusionDecoder(bundle, "cpu-u8", threads=1)
    closed.close()
    with pytest.raises(UsageError, match="closed"):
        write(closed, {})


# -- ask -----------------------------------------------------------------------------------------------------------


def test_a_generated_answer_follows_the_memory_and_names_it(ravlm: Ravlm, yard: Any) -> None:
    id_ = tell(ravlm, BINS)
    for text in (BINS, LATER):
        if text != BINS:
            ravlm.forget([id_])
            id_ = tell(ravlm, text)
        answer = ravlm.ask(yard.open, BINS_QUESTION, generate=True)
        assert (answer.text, answer.level, answer.reason, answer.complete) == (text, Level.GENERATED, "", True)
        assert [(e.id, e.text) for e in answer.evidence] == [(id_, text)]
        assert 0.4 < answer.evidence[0].score < 1
        assert 0.5 < answer.confidence <= 1
        assert {"encode", "search", "prefill", "decode"} <= set(answer.latency.stages_ms)


def test_the_first_answer_in_words_says_what_waiting_for_the_decoder_cost(
    yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_LATER_S", 600.0)
    with load("starter", threads=1, budget_ms=60_000) as ravlm:
        ravlm.remember(yard.open, "the gate is open")
        first, second = (ravlm.ask(yard.open, "is the gate open?", generate=True).latency for _ in range(2))
    assert first.stages_ms["load"] > 0
    assert sum(first.stages_ms.values()) <= first.total_ms
    assert "load" not in second.stages_ms


def test_a_generated_answer_follows_the_picture(ravlm: Ravlm, yard: Any, strange: Any) -> None:
    ids = {text: ravlm.remember(picture, text) for text, picture in
           (("a yard behind the house", yard.closed), ("one colourful test card", strange))}  # fmt: skip
    for picture, text in ((yard.closed, "a yard behind the house"), (strange, "one colourful test card")):
        answer = ravlm.ask(picture, "and this?", generate=True)
        assert answer.text == text
        assert answer.evidence[0].id == ids[text]
        assert 0.9 < answer.evidence[0].score < 1.001, "its picture's cosine; what is taught is looked at once more"


def test_it_abstains_where_neither_memory_nor_picture_answers(ravlm: Ravlm, yard: Any) -> None:
    for _ in range(2):
        answer = ravlm.ask(yard.open, BINS_QUESTION, generate=True)
        assert (answer.text, answer.evidence, answer.level) == (UNKNOWN, (), Level.GENERATED)
        assert "neither the picture nor what was taught" in answer.reason
        assert answer.confidence == pytest.approx(0, abs=0.01)
        tell(ravlm, "milk and bread are bought")


def test_a_filter_holds_for_generated_answers_too(ravlm: Ravlm, yard: Any) -> None:
    tell(ravlm, BINS)
    ravlm.memory.add([ravlm.entry(None, LATER, tags={"house": "other"})])
    answer = ravlm.ask(yard.open, BINS_QUESTION, where=Where(tags={"house": "other"}), generate=True)
    assert answer.text == LATER


def test_a_second_hop_finds_what_is_said_of_what_was_found(ravlm: Ravlm, yard: Any) -> None:
    ravlm.remember(yard.open, KETTLE)
    for text in ("where was this bought", "this was bought on monday"):
        tell(ravlm, text)  # nearer to the question than the fact itself
    fact = tell(ravlm, BOUGHT)
    one, two = (ravlm.ask(yard.open, BOUGHT_QUESTION, generate=True, hops=hops) for hops in (1, 2))
    assert one.text != BOUGHT
    assert "second_hop" not in one.latency.stages_ms
    assert two.text == BOUGHT
    assert two.evidence[0].id == fact
    assert "second_hop" in two.latency.stages_ms


def test_without_a_picture_to_start_from_a_second_hop_adds_nothing(ravlm: Ravlm, yard: Any) -> None:
    tell(ravlm, BINS)
    assert ravlm.ask(yard.open, BINS_QUESTION, generate=True, hops=2).text == BINS


class Slow(Pace):
    """A stage that takes minutes, as far as is known, from the nth time it is asked."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self._asked = itertools.count(-after)

    @property
    def ms(self) -> float:
        return 0.0 if next(self._asked) < 0 else 2 * GENEROUS_MS


def test_without_time_to_read_the_answer_is_a_retrieved_one(
    ravlm: Ravlm, yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(ravlm, BINS)
    with monkeypatch.context() as patch:
        patch.setattr(ravlm._generator.get()._decoder, "prefill_pace", Slow())
        answer = ravlm.ask(yard.open, BINS_QUESTION, generate=True)
    assert (answer.text, answer.level) == (BINS, Level.RETRIEVED)
    assert "decode" not in answer.latency.stages_ms
    assert ravlm.ask(yard.open, BINS_QUESTION, generate=True).level is Level.GENERATED, "with time it is written"


def test_what_time_cut_off_is_said_to_be_and_written_anew_the_next_time(
    ravlm: Ravlm, yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(ravlm, BINS)
    with monkeypatch.context() as patch:
        patch.setattr(ravlm._generator.get()._decoder, "step_pace", Slow(after=4))  # one is the plan's
        answer = ravlm.ask(yard.open, BINS_QUESTION, generate=True)
    assert (answer.text, answer.level, answer.complete) == ("the bins go", Level.GENERATED, False)
    assert answer.as_dict()["complete"] is False
    again = ravlm.ask(yard.open, BINS_QUESTION, generate=True)
    assert (again.text, again.level, again.complete) == (BINS, Level.GENERATED, True)
    assert ravlm.ask(yard.open, BINS_QUESTION, generate=True).level is Level.CACHED


def test_without_time_for_a_second_hop_the_first_one_answers(
    ravlm: Ravlm, yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ravlm.remember(yard.open, KETTLE)
    monkeypatch.setattr(ravlm._generator.get(), "_hop_pace", Slow())
    answer = ravlm.ask(yard.open, BOUGHT_QUESTION, generate=True, hops=2)
    assert (answer.text, answer.level) == (KETTLE, Level.GENERATED)
    assert "second_hop" not in answer.latency.stages_ms


def test_nothing_is_generated_unless_asked_for(ravlm: Ravlm, yard: Any) -> None:
    ravlm.remember(yard.open, "the gate is open", answer="yes")
    for generate in (None, False):
        answer = ravlm.ask(yard.open, "is the gate open?", generate=generate)
        assert (answer.text, answer.complete) == ("yes", True)
        assert answer.level in (Level.RETRIEVED, Level.CACHED)
    generated = ravlm.ask(yard.open, "is the gate open?", generate=True)
    assert (generated.text, generated.level) == ("the gate is open", Level.GENERATED)


@pytest.mark.parametrize("hops", [0, 3, -1])
def test_other_numbers_of_hops_are_refused(ravlm: Ravlm, yard: Any, hops: int) -> None:
    with pytest.raises(UsageError, match="hops: expected 1 to 2"):
        ravlm.ask(yard.open, BINS_QUESTION, generate=True, hops=hops)


def test_words_asked_of_a_bundle_without_a_decoder_are_refused(plain: Bundle, yard: Any) -> None:
    with (
        load(plain, threads=1) as mute,
        pytest.raises(BundleError, match="expected a fusion decoder in flavour cpu-u8, got none"),
    ):
        mute.ask(yard.open, BINS_QUESTION, generate=True)


def test_a_memory_serves_bundles_with_and_without_a_decoder(
    bundle: Bundle, plain: Bundle, tmp_path: Path, yard: Any
) -> None:
    with load(plain, tmp_path / "m", threads=1) as mute:
        tell(mute, BINS)
    with load(bundle, tmp_path / "m", threads=1, budget_ms=GENEROUS_MS) as talks:
        assert talks.ask(yard.open, BINS_QUESTION, generate=True).text == BINS


def test_the_command_line_generates_on_demand(
    bundle: Bundle, plain_folder: Path, tmp_path: Path, yard: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    memory, image = tmp_path / "m", tmp_path / "open.png"
    assert cv2.imwrite(str(image), yard.open)
    with load(bundle, memory, threads=1) as talks:
        tell(talks, BINS)

    def ask(which: str, *options: str) -> tuple[int, str, str]:
        common = ("--memory", str(memory), "--image", str(image), "--budget-ms", str(GENEROUS_MS), "--json")
        code = run(["ask", which, BINS_QUESTION, *common, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    folder = bundle.where.split("'")[1].removeprefix("output ")
    for options, level in (((), "retrieved"), (("--no-generate",), "retrieved"), (("--generate",), "generated"),
                           (("--generate", "--hops", "2"), "generated")):  # fmt: skip
        code, out, _ = ask(folder, *options)
        assert (code, json.loads(out)["level"], json.loads(out)["text"]) == (0, level, BINS)
    code, _, err = ask(str(plain_folder), "--generate")
    assert (code, "fusion decoder" in err) == (1, True)


# -- the image encoder's other outputs -----------------------------------------------------------------------------


def test_one_look_brings_what_the_bundle_has_a_use_for(bundle: Bundle, plain: Bundle, yard: Any) -> None:
    for opened, cells in ((bundle, 49), (plain, 0)):
        encoder = ImageEncoder(opened, "cpu-u8", threads=1)
        pixels = encoder.preprocess(Frame(yard.open))
        look = encoder.look(pixels)
        np.testing.assert_array_equal(look.embedding, encoder.embed(pixels))
        assert (look.cells.shape[1], look.cells.dtype, look.meaning) == (cells, np.float32, None)
        encoder.close()


def test_the_meaning_of_a_picture_is_remembered_in_a_field_of_its_own(plain: Bundle, tmp_path: Path, yard: Any) -> None:
    import onnx

    contents = {record.path: plain.read(record.path) for record in plain.manifest.files}
    file = plain.manifest.flavor("cpu-u8").image.file
    model = onnx.load_from_string(contents[file])
    dim = plain.manifest.image_space.dim
    model.graph.node.append(onnx.helper.make_node("Neg", ["embedding"], ["meaning"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("meaning", onnx.TensorProto.FLOAT, ["n", dim]))
    contents[file] = model.SerializeToString()
    space = Space(id="ab" * 32, dim=dim)
    means = write_bundle(tmp_path / "b", msgspec.structs.replace(plain.manifest, meaning_space=space), contents)
    with load(plain, tmp_path / "m", threads=1) as before:
        old = before.remember(yard.closed, "the gate is closed", region=yard.gate)
    with load(means, tmp_path / "m", threads=1) as ravlm:
        new = ravlm.remember(yard.open, "the gate is open", region=yard.gate)
        tell(ravlm, BINS)
        image, meaning = (ravlm.memory.vectors(field, [new])[0] for field in ("image", "meaning"))
        np.testing.assert_allclose(meaning, -image, atol=1e-3)
        assert [hit.id for hit in ravlm.memory.search("meaning", meaning, 9)] == [new]
        assert ravlm.ask(yard.open, "is the gate open?", region=yard.gate).text == "the gate is open"
        reembed(ravlm, ravlm.memory, lambda: None)
        assert {hit.id for hit in ravlm.memory.search("meaning", meaning, 9)} == {old, new}


def test_what_was_asked_is_no_answer(ravlm: Ravlm, yard: Any) -> None:
    """Words come from what was taught or are the decoder's own, never from the question."""
    taught = ("the gate is closed", "the gate is open")
    ravlm.remember(yard.closed, taught[0], region=yard.gate)
    ravlm.remember(yard.open, taught[1], region=yard.gate)
    for picture in (yard.closed_later, yard.open_later):
        for question in ("is the gate open?", "is the gate closed?", "gate blorf zanged glimp, which?"):
            answer = ravlm.ask(Frame(picture), question, region=yard.gate, generate=True)
            assert answer.abstained or any(answer.text in sentence for sentence in taught), (question, answer.text)
            assert type(answer.confidence) is float
