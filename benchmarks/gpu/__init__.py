"""Check on a GPU that every answer is right, and measure the speed, in one command of a few
minutes.

``python -m benchmarks.gpu --out out`` runs four stages:

- *right*: in float32, the card's answers equal those of transformers, of the recorded reference,
  and of the engine on the CPU;
- *shares*: an engine that holds a share of the card stays inside it, alone and beside another;
- *fast*: requests a second from a JPEG's bytes to the last token, against the card's measured
  limits and transformers' static batches, on random weights in the published checkpoints' shapes;
- *why*: a profile of one second of steady work.

Each result is printed and written to ``results.json`` at once. A failure is reported, and the next
part runs. The command imports neither Ray nor FastAPI: it needs torch, transformers and the
packages that ``wheels.sh`` gathers. ``--device cpu --scale tiny`` is a smoke test.
"""
