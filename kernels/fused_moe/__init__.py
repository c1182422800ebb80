"""One MoE layer in one launch: route, dispatch, gate-up tiles, activation, down tiles, combine.

A persistent kernel whose blocks draw tickets from a counter over a list of tiles; the list comes
from the `ticket` scheduler. See docs/decisions/0010-tickets.md and, for the order of reading:
`tiles` (what a tile is and costs), `program` (the list), `state` (memory that tiles share), `cpu`
and `device` (the two forms of the kernel), `reference`.
"""
