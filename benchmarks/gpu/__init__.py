"""Whether everything is right on a GPU, and how fast, in one command for a card that is at hand for
minutes.

``python -m benchmarks.gpu --out out`` runs four stages:

- *right*: answers in float32 on the card are those of transformers, of the recorded reference and of the CPU's engine;
- *shares*: an engine that holds a part of the card stays inside it, alone and beside another;
- *fast*: requests a second from a JPEG's bytes to the last token, against the card's measured limits and against
  transformers' static batches, with random weights in the published checkpoints' shapes;
- *why*: where the time of a second of work goes.

Each result is printed, and written to ``results.json``, as soon as it is known; what fails is told and the next goes
on. It imports neither Ray nor FastAPI: torch, transformers and what ``wheels.sh`` gathers are enough. ``--device cpu
--scale tiny`` shows that everything runs.
"""
