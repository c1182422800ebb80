"""Swarms: what happens between nodes, as pure state machines on either clock: gossip, agreement, checkpoints, serving."""
