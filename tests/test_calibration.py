"""Calibration against scores whose distortion is known."""

import numpy as np
import pytest

from ray_pipeline import calibration
from ray_pipeline.calibration import Array, Calibration, Kind

KINDS: tuple[Kind, ...] = ("none", "temperature", "platt")


def distorted(temperature: float, rows: int = 20_000) -> tuple[Array, Array, Array]:
    """Labels, their true probabilities, and these with log-odds multiplied by a temperature."""
    generator = np.random.default_rng(3)
    truth = generator.beta(2, 1, rows)
    odds = np.log(truth / (1 - truth)) * temperature
    return (generator.random(rows) < truth).astype(np.int8), truth, (1 / (1 + np.exp(-odds))).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found(temperature: float) -> None:
    labels, truth, scores = distorted(temperature)
    fitted = calibration.fit("temperature", labels, scores)
    assert fitted.temperature == pytest.approx(temperature, rel=0.05)
    assert np.abs(fitted.apply(scores) - truth).max() < 0.02


def test_isotonic_comes_near_the_truth_and_never_to_certainty() -> None:
    labels, truth, scores = distorted(3.0)
    fitted = calibration.fit("isotonic", labels, scores)
    found = fitted.apply(scores)
    assert np.abs(found - truth).mean() < 0.02 < np.abs(scores - truth).mean()
    assert found.min() >= np.float32(1 / 20_002) and found.max() <= np.float32(1 - 1 / 20_002)


def test_platt_undoes_another_share_of_relevant_rows_which_a_temperature_cannot() -> None:
    labels, truth, _ = distorted(1.0)
    odds = 1.5 * np.log(truth / (1 - truth)) - 1.2  # as after a training with many mined negatives
    moved = (1 / (1 + np.exp(-odds))).astype(np.float32)
    fitted = calibration.fit("platt", labels, moved)
    assert (fitted.temperature, fitted.intercept) == pytest.approx((1.5, 0.8), abs=0.06)
    off = {kind: np.abs(calibration.fit(kind, labels, moved).apply(moved) - truth).mean() for kind in KINDS}
    assert off["platt"] < 0.01 < off["temperature"]


def test_platt_neither_falls_nor_comes_to_certainty() -> None:
    scores = np.array([0.1, 0.2, 0.8, 0.9], np.float32)
    right, wrong = (calibration.fit("platt", np.array(labels), scores) for labels in ([0, 0, 1, 1], [1, 1, 0, 0]))
    assert right.apply(scores).max() == pytest.approx(3 / 4, abs=0.1), "two rows of a class say no more"
    assert (np.diff(wrong.apply(scores)) > 0).all()


@pytest.mark.parametrize("kind", ["none", "temperature", "platt", "isotonic"])
def test_the_order_of_rows_is_kept(kind: calibration.Kind) -> None:
    labels, _, scores = distorted(2.0, 500)
    fitted = calibration.fit(kind, labels, scores)
    rising = np.sort(np.concatenate([scores, scores, [0, 1, 0.5]]).astype(np.float32))
    found = fitted.apply(rising)
    assert found.dtype == np.float32 and (np.diff(found) >= 0).all() and found.min() >= 0 and found.max() <= 1
    assert (np.diff(found)[np.diff(rising) == 0] == 0).all()


def test_none_changes_nothing() -> None:
    scores = np.array([0.0, 0.25, 1.0], np.float32)
    assert (Calibration().apply(scores) == scores).all()
