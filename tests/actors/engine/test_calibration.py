"""What slices of the past say of now: a true trend is followed back, chance is not believed."""

import numpy as np
import pytest

from actors.engine.calibration import SLICE_STRENGTH, at_distance_zero

SLICES = 8
ERROR = 0.04
DISTANCE = (np.arange(SLICES) + 0.5) / SLICES


def told(values: np.ndarray, error: float = ERROR) -> tuple[np.ndarray, np.ndarray]:
    """Sums of slices whose parameters [slices, 2] were found with an error like `error`."""
    precision = np.eye(2) / error**2 - np.eye(2) * SLICE_STRENGTH
    return np.tile(precision, (SLICES, 1, 1)), values / error**2


def draws(seed: int, start: float, slope: float, between: float, n: int = 300) -> np.ndarray:
    """What is believed of n histories: estimates of the value at distance 0, [n, 2]."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        noise = rng.normal(size=(SLICES, 2)) * np.hypot(between, ERROR)
        values = (start + slope * DISTANCE)[:, None] + noise
        found.append(at_distance_zero(*told(values), strength=20.0).mean)
    return np.array(found)


def test_a_steady_correction_is_made_and_chance_is_not():
    steady = draws(1, start=-0.15, slope=0.0, between=0.0)
    assert np.median(steady) == pytest.approx(-0.15, abs=0.02)
    chance = draws(2, start=0.0, slope=0.0, between=0.0)
    # The mean of 8 slices alone has an error of ERROR / sqrt(8) = 0.014.
    assert np.sqrt(np.mean(chance**2)) < 0.014
    assert np.mean(chance == 0.0) > 0.5


def test_a_correction_as_different_as_it_is_large_is_hardly_made():
    unsteady = draws(3, start=-0.05, slope=0.0, between=0.15)
    assert abs(np.median(unsteady)) < 0.02


def test_what_grows_with_the_distance_from_the_base_is_followed_back_to_none():
    values = draws(4, start=0.0, slope=-0.3, between=0.0)
    plain = -0.3 * DISTANCE.mean()
    assert abs(np.mean(values)) < abs(plain) / 5
    far = draws(5, start=-0.2, slope=-0.3, between=0.0)
    assert np.mean(far) == pytest.approx(-0.2, abs=0.02)


def test_few_slices_say_nothing_and_many_lessons_are_no_certainty():
    precision, information = told(np.full((SLICES, 2), 0.5))
    precision[2:], information[2:] = 0.0, 0.0
    nothing = at_distance_zero(precision, information, strength=20.0)
    assert nothing.mean.tolist() == [0.0, 0.0]
    assert nothing.precision.tolist() == [20.0, 20.0]
    rng = np.random.default_rng(6)
    values = 0.5 + rng.normal(size=(SLICES, 2)) * 0.1
    sure = at_distance_zero(*told(values, error=1e-3), strength=20.0)
    # However well each slice is known, the next may differ as they do: by a variance of 0.01.
    assert sure.precision.max() < 400.0
    assert sure.mean == pytest.approx([0.5, 0.5], abs=0.15)
