"""The engine against the machine's limits and against two baselines, in one run and one table.

``python -m benchmarks.engine`` builds random weights in SmolVLM2-500M's shape, bfloat16, measures
what the machine can do (multiplications in the vision tower's shapes with packed weights, reading
memory), and then each workload through

- (a) plain transformers' ``generate``, one request at a time;
- (b) static batches of up to 8: Serve's own ``@serve.batch`` around ``generate``;
- the engine, alone and over HTTP through the whole graph.

*Of the limit* is the least time that the workload takes at the measured limits, over the time that
it took: a decode step reads the weights and its rows' keys and values once; a picture and a prompt
take their operations, and the weights once. The limit of a workload is the same for the baselines,
so that their shares can be compared.
"""
