"""How far the simulator is off, on configurations that it was not calibrated with."""
