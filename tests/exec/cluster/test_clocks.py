from __future__ import annotations

from exec.cluster.clocks import Offset, drift_corrected_ps, estimate


def test_the_shortest_round_trip_counts() -> None:
    # The rank's clock is 1000 ahead; the second ping was held up for 400 on its way back.
    found = estimate([(0, 1060, 100), (200, 1220, 640), (1000, 2010, 1020)])
    assert found == Offset(1000, 10, 1010)


def test_the_true_offset_lies_within_the_uncertainty_however_uneven_the_ways() -> None:
    for there, back in ((1, 99), (99, 1), (50, 50), (0, 7)):
        found = estimate([(500, 500 + there + 123_456, 500 + there + back)])
        assert abs(found.offset_ns - 123_456) <= found.uncertainty_ns


def test_drift_is_corrected_in_proportion() -> None:
    before, after = Offset(100, 5, 0), Offset(1100, 5, 1_000_000)
    # Half way between the estimates the rank's clock had gained 500 ns.
    assert drift_corrected_ps(500_000_000, 0, before, after) == 500_000_000 - 500_000
    assert drift_corrected_ps(0, 0, before, after) == 0


def test_what_lies_within_the_uncertainty_is_no_drift() -> None:
    assert drift_corrected_ps(500_000_000, 0, Offset(100, 500, 0), Offset(1000, 500, 1_000_000)) == 500_000_000
