"""The search for the nucleus's threshold: halving the range of a probability's float32 bits."""

from __future__ import annotations

import numpy as np

TOP = int(np.float32(1).view(np.int32)) + 1
"""Bits above those of the largest probability relative to the most probable token's, which is 1."""

ROUNDS = (TOP - 1).bit_length()
"""Halvings until the range holds one number."""
