"""Calibration against scores whose distortion is known."""

import numpy as np
import pytest

from ray_pipeline import calibration
from ray_pipeline.calibration import Array, Calibration


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


@pytest.mark.parametrize("kind", ["none", "temperature", "isotonic"])
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
