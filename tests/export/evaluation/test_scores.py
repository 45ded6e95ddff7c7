"""Every score on numbers that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_ravlm.export.evaluation.scores import (
    aurc,
    average_precision,
    bleu,
    calibration_error,
    exact_match,
    reliability,
    risk_coverage,
    token_f1,
)

pytestmark = pytest.mark.export


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Falling  rocks.", True),
        ("the falling rocks", True),
        ("falling rock", False),
        ("", False),
        (None, False),
    ],
)
def test_case_spaces_articles_and_the_full_stop_do_not_count(said: str | None, right: bool) -> None:
    assert exact_match(said, "falling rocks") is right


def test_an_answer_that_is_an_article_or_holds_signs_keeps_them() -> None:
    assert exact_match("A", "a")
    assert not exact_match("an", "a")
    assert not exact_match("R417", "R-417")
    assert exact_match("8.5 CM", "8.5 cm")


def test_f1_counts_shared_words() -> None:
    assert token_f1("falling rocks ahead", "the falling rocks") == pytest.approx(2 * 2 / 5)
    assert token_f1("stop stop", "stop") == pytest.approx(2 / 3)
    assert token_f1(None, "stop") == token_f1("go", "stop") == 0


def test_bleu_is_one_for_equal_texts_and_pays_for_brevity() -> None:
    text = "a warning sign that means falling rocks"
    assert bleu([text], [text]) == pytest.approx(1)
    assert bleu(["a warning sign that"], [text]) == pytest.approx(math.exp(1 - 7 / 4))
    assert bleu(["a sign"], [text]) == 0
    assert bleu([""], [text]) == 0


def test_bleu_multiplies_the_precisions() -> None:
    assert bleu(["a b c d x"], ["a b c d e"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_average_precision_by_hand() -> None:
    assert average_precision([7, 3, 9, 5], frozenset({7, 9})) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([7, 3], frozenset({3, 8})) == pytest.approx(1 / 4)
    assert average_precision([], frozenset({3})) == 0


def test_risk_grows_with_coverage_when_the_confidence_is_good() -> None:
    confidence, right = np.array([0.2, 0.9, 0.5, 0.8]), np.array([False, True, False, True])
    np.testing.assert_allclose(risk_coverage(confidence, right), [0, 0, 1 / 3, 1 / 2])
    assert aurc(confidence, right) == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_equal_confidences_tell_nothing_whatever_their_order() -> None:
    same = np.full(4, 0.5)
    for right in ([True, True, False, False], [False, True, False, True]):
        np.testing.assert_allclose(risk_coverage(same, np.array(right)), 0.5)


def test_the_calibration_error_weighs_bins_by_their_answers() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.5, 1.0])
    right = np.array([True, True, True, False, False, True])
    first, second = reliability(confidence, right)
    assert first == (0.5, 0.0, 1)
    assert second == (pytest.approx(0.96), pytest.approx(0.8), 5)
    assert calibration_error(confidence, right) == pytest.approx((0.5 * 1 + 0.16 * 5) / 6)
