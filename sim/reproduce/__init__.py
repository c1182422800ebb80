"""Published measurements, simulated anew: what was published, how far the simulator is off."""
