"""Colours of small loads, and quantities as people read them."""

from __future__ import annotations

import numpy as np
import pytest

from sim import units
from sim.swarm.report import heat


@pytest.mark.parametrize(("most", "top"), [(0.0, 1.0), (3e-6, 5e-6), (0.01, 0.01), (0.011, 0.02), (0.6, 1.0), (1.0, 1.0), (1.3, 1.0)])
def test_the_darkest_colour_is_a_round_share_that_nothing_exceeds(most: float, top: float) -> None:
    assert heat._top(np.array([[0.0, most]])) == pytest.approx(top)


def test_a_load_however_small_is_seen() -> None:
    drawn = heat.svg(["a", "b"], np.array([[3e-6, 0.0], [0.0, 0.0]]), np.zeros((2, 2), bool), np.array([0.0, 1.0, 2.0]), [])
    idle, busy = heat.shade(0.0), heat.shade(0.6)
    assert drawn.count(f'fill="{busy}"') == 1 and drawn.count(f'fill="{idle}"') == 3 and "0.0003%" in drawn


def test_energy_and_mass_have_the_unit_that_fits() -> None:
    assert (units.energy(0.18), units.energy(99.0), units.energy(2_500.0)) == ("0.18 Wh", "99 Wh", "2.50 kWh")
    assert (units.mass(0.5), units.mass(12_340.0)) == ("0.5 g", "12.34 kg")
