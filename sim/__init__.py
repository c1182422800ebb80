"""Tandem's simulator: what a schedule or placement would do on a machine. Start at `sim.simulate.simulate`."""
