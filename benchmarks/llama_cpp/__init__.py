"""Compare decode steps and prompts on a CPU with llama.cpp's, on the same random weights.

``python -m benchmarks.llama_cpp`` downloads llama.cpp (the source archive of llama-cpp-python on
PyPI contains it) and builds it for this CPU, which takes five minutes on two cores, once. It writes
the text model of SmolVLM2-500M's shape as a GGUF file. Then it times decode steps of 1 to 16 rows
and prompts of 150 and 750 tokens, in bfloat16, and in 8 and 4 bits.

The memory bandwidth of a shared machine can change from one second to the next. So raylens and
llama.cpp take turns at every workload, in several rounds. The table has the medians of all rounds.
Neither samples tokens: a step ends with its logits.
"""
