"""One MoE layer over several GPUs (expert parallelism): its ops and buffers, costs, and what a run of it says.

Ranks are 0..W-1, one GPU each. Expert e lives on rank e // (E / W). A rank holds the requests whose
number modulo W is its own; all rows of them pass the layer together.

Ops of the kernel-level schedulers (`sim.schedulers.ep`), on both clocks. R, A, B ranks; c chunk; p = layer modulo 2.
Labels of every task: `rank` = the rank whose lane it is (a put: the sender A), `layer`, `microbatch` = c, `page` = the peer (-1: all).

| op | lane | work | reads -> writes |
|---|---|---|---|
| launch | host.R | variant = stage launched | |
| gate | gpu.R | tokens, experts = E | hidden.R.p -> routes.R |
| permute | gpu.R | tokens | hidden.R.p, routes.R -> send.R.c |
| enter | comm.R | variant | |
| put | put.A.B | tokens, bytes: upper bounds; variant "dispatch" | send.A.c -> recv.B.A.c |
| experts | gpu.R | tokens: upper bound; experts = E / W | send.R.c, recv.R.A.c of all A (or of `page`) -> result.R.A.c |
| put | put.B.A | as above; variant "combine" | result.B.A.c -> back.A.B.c |
| unpermute | gpu.R | tokens | routes.R, result.R.R.c, back.R.B.c of all B -> hidden.R.(1 - p) |
| barrier | none | variant | |

launch: the host enqueues one kernel or collective. gate: router over the rank's tokens: experts and weights [tokens, k] and
the counts of each expert. permute: rows of chunk c sorted by expert, so by the rank that holds it. enter: the rank is in the
collective: what it sends is ready, and it may be written to. put dispatch: rows of A for B's experts with their counts, then the
signal. experts: grouped GEMM0, activation, GEMM1. put combine: results of A's rows back to A. unpermute: sum of the results by
router weight, in order of tokens. barrier: a collective returns, for all ranks at once (no lane; it waits for all its puts).

Rows whose expert is on their own rank are not put: `experts` reads them from send.R.c (its own part) and writes result.R.R.c, which
`unpermute` reads. So A != B in every put, recv and back. Chunk c holds tokens [t c / C, t (c + 1) / C) of the rank's t (`chunk_rows`).
Nothing is overwritten before it is read, over any number of layers: whoever writes a buffer again depends, through its own
`gate`, on an `unpermute` that waited for the last reader.
"""
