"""Measure the engine against the machine's limits and two baselines, in one run and one table.

``python -m benchmarks.engine`` builds random bfloat16 weights in SmolVLM2-500M's shape. It first
measures the machine: the GEMM rate in the vision encoder's shapes with packed weights, and the
memory bandwidth. Then it runs each workload through

- (a) plain transformers' ``generate``, one request at a time;
- (b) static batches of up to 8: Serve's own ``@serve.batch`` around ``generate``;
- the engine, alone and over HTTP through the whole graph.

*Of the limit* is the least time that the workload needs at the measured rates, divided by the time
that it took. A decode step reads the weights and its rows' keys and values once. A picture and a
prompt cost their operations, and read the weights once. The baselines are held to the same limit,
which makes the shares comparable.
"""
