"""A scheduler of one's own: CPU attention one micro-batch ahead, and weights in two halves.

    python -m sim check examples/half_layers.py:HalfLayers
    python -m sim compare --model mixtral-8x7b --machine l4 --workload mtbench --schedulers cgopipe,examples/half_layers.py:HalfLayers
"""

from sim.schedulers.base import Scheduler
from sim.schedulers.passes import Pass, Rows


class HalfLayers(Scheduler):
    """Between CGOPipe (a page for each micro-batch) and FastDecode* (a layer at a time)."""

    lanes = ("gpu", "cpu", "h2d", "d2h", "pin")
    attention = ("cpu",)

    def decode(self, p: Pass) -> None:
        """Launch one step. What each task waits for follows from the buffers that it touches."""
        pages = range(p.sizes.pages)
        first, second = pages[: len(pages) // 2], pages[len(pages) // 2 :]
        middle = len(p.rows) // 2
        self.front(p, 0, p.rows[0])
        for i in p.layers:
            p.weights.page_to_pin(i + 1, pages)
            for k, r in enumerate(p.rows):
                if k < p.last:
                    self.front(p, i, p.rows[k + 1])
                p.load_hidden(i, r)
                p.finish(i, r)
                if k == middle:
                    p.weights.page_to_gpu(i + 1, first)
                if k == p.last:
                    p.weights.page_to_gpu(i + 1, second)
                    if i + 1 < p.sizes.layers:
                        self.front(p, i + 1, p.rows[0])

    def front(self, p: Pass, i: int, r: Rows) -> None:
        """Everything of layer i up to the attention's output on the host."""
        p.begin(i, r)
        p.offload_qkv(i, r)
        p.attn_cpu(i, r)
