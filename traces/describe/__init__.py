"""What is inside a trace: figures with their definitions beside the functions, tables and plots.

`describe(path)` gives a `Description`; `balance`, `locality`, `prediction`, `drift`, `arrivals` and
`lanes` hold the definitions and their sources.
"""

from __future__ import annotations

from traces.describe.summary import Description, describe

__all__ = ["Description", "describe"]
