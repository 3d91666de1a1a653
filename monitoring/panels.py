"""The panels of the dashboard: rows that answer a question each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monitoring.promql import (
    MODEL,
    aggregate,
    greatest,
    hit_rate,
    mean,
    per_second,
    quantile,
    select,
    share,
    total,
)

HTTP = "ray_raylens_http"
ENGINE = "ray_raylens_engine"
PREPROCESSOR = "ray_raylens_preprocessor"
JOBS = "ray_raylens_jobs"
REALTIME = "ray_raylens_realtime"
SERVE = "ray_serve"
WITH_MODEL = f'{MODEL}, model!="none"'
ON_GPU = f'{MODEL}, device=~"cuda.*"'
DEPLOYMENT_STATES = (
    "unknown",
    "deploy failed",
    "unhealthy",
    "updating",
    "scaling up",
    "scaling down",
    "healthy",
)
"""The names of the values of ``ray_serve_deployment_status``."""

Unit = Literal["short", "s", "bytes", "percentunit", "percent", "reqps", "ops"]


@dataclass(frozen=True)
class Panel:
    """A chart.

    ``queries`` maps each legend, in which ``{{label}}`` is a label's value, to a query.
    """

    title: str
    unit: Unit
    queries: dict[str, str]
    help: str = ""
    is_stacked: bool = False
    names: tuple[str, ...] = ()
    """The names of the values 0, 1, 2 …; the panel shows them over time."""
    limit: float | None = None
    """A line: beyond it, something is wrong."""


@dataclass(frozen=True)
class Row:
    question: str
    panels: tuple[Panel, ...]


IS_IT_UP = Row(
    "Is it up?",
    (
        Panel(
            "Deployments",
            "short",
            {"{{deployment}}": greatest(f"{SERVE}_deployment_status", "deployment")},
            help=(
                "The ingress, the preprocessor, and each model. A model that is scaled to zero is"
                " healthy."
            ),
            names=DEPLOYMENT_STATES,
        ),
        Panel(
            "Healthy replicas",
            "short",
            {"{{deployment}}": total(f"{SERVE}_deployment_replica_healthy", "deployment")},
        ),
        Panel(
            "Replicas started",
            "short",
            {"{{deployment}}": total(f"{SERVE}_deployment_replica_starts_total", "deployment")},
            help="Since the start of Ray. Steps that no scaling explains are replicas that ended.",
        ),
        Panel(
            "Answers by status",
            "reqps",
            {"{{status}}": per_second(f"{HTTP}_requests_total", "status")},
            help="The status 0 is a client that left before its answer.",
            is_stacked=True,
        ),
        Panel(
            "Server errors",
            "percentunit",
            {"errors": share(f"{HTTP}_requests_total", 'status=~"5..", status!~"503|504"')},
            help="5xx other than 503 (refused) and 504 (deadline).",
            limit=0.01,
        ),
        Panel(
            "Ends of answers",
            "ops",
            {"{{model}} {{reason}}": per_second(f"{ENGINE}_answers_total", "model, reason", MODEL)},
            help="stop and length are regular; abort is a client that left.",
        ),
    ),
)

IS_IT_SLOW = Row(
    "Is it slow, and where?",
    (
        Panel(
            "Whole answer",
            "s",
            {
                "{{model}} p50": quantile(0.5, f"{HTTP}_seconds", "model", WITH_MODEL),
                "{{model}} p95": quantile(0.95, f"{HTTP}_seconds", "model", WITH_MODEL),
                "{{model}} p99": quantile(0.99, f"{HTTP}_seconds", "model", WITH_MODEL),
            },
            help="From the arrival of a request in the ingress to the end of its answer.",
        ),
        Panel(
            "First token",
            "s",
            {
                "{{model}} p50": quantile(0.5, f"{HTTP}_first_token_seconds", "model", MODEL),
                "{{model}} p95": quantile(0.95, f"{HTTP}_first_token_seconds", "model", MODEL),
                "{{model}} p99": quantile(0.99, f"{HTTP}_first_token_seconds", "model", MODEL),
            },
            help=(
                "From the call of the model to the first part of its answer, preprocessing "
                "included."
            ),
        ),
        Panel(
            "Where a mean answer's time goes",
            "s",
            {
                "preprocessing: waiting": mean(f"{PREPROCESSOR}_wait_seconds"),
                "preprocessing: {{step}}": mean(f"{PREPROCESSOR}_step_seconds", "step"),
                "engine: {{stage}}": mean(f"{ENGINE}_stage_seconds", "stage", MODEL),
            },
            help=(
                "Of all models that are selected. The rest of an answer's time is the ingress and"
                " transport."
            ),
            is_stacked=True,
        ),
        Panel(
            "Ingress",
            "s",
            {
                "proxy p95": f"{quantile(0.95, f'{SERVE}_http_request_latency_ms')} / 1000",
                "ingress p95": quantile(0.95, f"{HTTP}_seconds"),
            },
            help="The whole request as the proxy and as the ingress see it. If the proxy's is"
            " longer, the ingress has too few replicas or cores.",
        ),
        Panel(
            "Preprocessing: waiting for a thread",
            "s",
            {
                "p50": quantile(0.5, f"{PREPROCESSOR}_wait_seconds"),
                "p95": quantile(0.95, f"{PREPROCESSOR}_wait_seconds"),
            },
        ),
        Panel(
            "Preprocessing: steps",
            "s",
            {"{{step}} p95": quantile(0.95, f"{PREPROCESSOR}_step_seconds", "step")},
        ),
        *(
            Panel(
                title,
                "s",
                {
                    "{{model}} p50": quantile(0.5, f"{ENGINE}_stage_seconds", "model", matchers),
                    "{{model}} p95": quantile(0.95, f"{ENGINE}_stage_seconds", "model", matchers),
                },
                help=help_text,
            )
            for title, help_text, matchers in (
                ("Engine: waiting", "For a slot in the batch.", f'{MODEL}, stage="queue"'),
                (
                    "Engine: prefill",
                    "Pictures and prompt, up to the first token.",
                    f'{MODEL}, stage="prefill"',
                ),
                (
                    "Engine: decode",
                    "From the first token to the last one.",
                    f'{MODEL}, stage="decode"',
                ),
            )
        ),
        Panel(
            "Time between tokens",
            "s",
            {
                "{{model}} p50": quantile(0.5, f"{ENGINE}_inter_token_seconds", "model", MODEL),
                "{{model}} p95": quantile(0.95, f"{ENGINE}_inter_token_seconds", "model", MODEL),
            },
            help="It grows with the batch, and while prompts are read between two tokens.",
        ),
        Panel(
            "Tokens",
            "ops",
            {
                "{{model}} prompt": per_second(f"{ENGINE}_prompt_tokens_total", "model", MODEL),
                "{{model}} answer": per_second(f"{ENGINE}_generated_tokens_total", "model", MODEL),
            },
            help="Per second, counted when an answer ends.",
        ),
        Panel(
            "Requests by task",
            "reqps",
            {"{{model}} {{task}}": per_second(f"{HTTP}_requests_total", "model, task", WITH_MODEL)},
        ),
    ),
)

IS_IT_FULL = Row(
    "Is it full?",
    (
        Panel(
            "Load",
            "percentunit",
            {"{{model}}": greatest(f"{ENGINE}_load", "model", MODEL)},
            help="Of the fullest replica: what its answers ask for, over what fits at a time."
            " Autoscaling follows it.",
            limit=1,
        ),
        Panel(
            "Answers running and waiting",
            "short",
            {
                "{{model}} running": total(f"{ENGINE}_running", "model", MODEL),
                "{{model}} waiting": total(f"{ENGINE}_waiting", "model", MODEL),
            },
        ),
        Panel(
            "Queue",
            "percentunit",
            {
                "{{model}} {{replica}}": f"{select(f'{ENGINE}_waiting', MODEL)} "
                f"/ {select(f'{ENGINE}_max_waiting', MODEL)}"
            },
            help="Waiting answers over max_waiting, of each replica.",
            limit=0.9,
        ),
        Panel(
            "KV cache",
            "percentunit",
            {
                "{{model}} {{replica}}": f"{select(f'{ENGINE}_kv_cache_bytes', MODEL)} "
                f"/ {select(f'{ENGINE}_kv_cache_limit_bytes', MODEL)}"
            },
            help="In use by answers, of each replica.",
            limit=0.95,
        ),
        Panel(
            "Requests refused",
            "percentunit",
            {"{{model}}": share(f"{HTTP}_requests_total", 'status="503"', "model", MODEL)},
            help="With 503 and Retry-After. The model none: before the model was known.",
            limit=0.01,
        ),
        Panel(
            "Rows of a decode step",
            "short",
            {"{{model}}": mean(f"{ENGINE}_batch_size", "model", MODEL)},
            help="Mean. Up to max_batch_size, more rows cost little time.",
        ),
        Panel(
            "Pictures waiting for a thread",
            "short",
            {"preprocessor": total(f"{PREPROCESSOR}_queue_depth")},
        ),
        Panel(
            "Pictures preprocessed",
            "ops",
            {"{{outcome}}": per_second(f"{PREPROCESSOR}_pictures_total", "outcome")},
            is_stacked=True,
        ),
        Panel(
            "Calls waiting for a replica",
            "short",
            {"{{deployment}}": total(f"{SERVE}_deployment_queued_queries", "deployment")},
            help=(
                "In Serve's handles, which know neither priorities nor deadlines: it should be "
                "near 0."
            ),
        ),
        Panel(
            "Live sessions",
            "short",
            {"{{kind}}": total(f"{REALTIME}_sessions", "kind")},
            help="WebRTC, WebSockets, and sources that are watched.",
            is_stacked=True,
        ),
        Panel(
            "Processors of nodes",
            "percent",
            {"{{ip}}": greatest("ray_node_cpu_utilization", "ip")},
        ),
        Panel(
            "Memory of nodes",
            "percentunit",
            {
                "{{ip}}": f"{greatest('ray_node_mem_used', 'ip')} "
                f"/ {greatest('ray_node_mem_total', 'ip')}"
            },
            help="Near 0.95, Ray ends the newest process.",
            limit=0.95,
        ),
        Panel(
            "Memory of replicas on CPUs",
            "bytes",
            {
                "{{model}} {{replica}}": greatest(
                    f"{ENGINE}_memory_bytes",
                    "model, replica",
                    f'{MODEL}, kind="allocated", device="cpu"',
                )
            },
            help="Resident memory of the process.",
        ),
    ),
)

WHAT_DO_JOBS_DO = Row(
    "What do jobs do?",
    (
        Panel(
            "Jobs that wait or run",
            "short",
            {"{{state}}": greatest(JOBS, "state", 'state=~"queued|running"')},
        ),
        Panel(
            "Oldest waiting job",
            "s",
            {"waits": greatest(f"{JOBS}_wait_seconds")},
            help="Since it could have started.",
            limit=900,
        ),
        Panel(
            "Ended",
            "ops",
            {"{{type}} {{state}}": per_second(f"{JOBS}_ended_total", "type, state")},
            is_stacked=True,
        ),
        Panel(
            "Attempts",
            "ops",
            {"{{type}} {{outcome}}": per_second(f"{JOBS}_attempts_total", "type, outcome")},
            help="ok, canceled, or the code of the error.",
        ),
        Panel(
            "Duration",
            "s",
            {
                "{{type}} p50": quantile(0.5, f"{JOBS}_seconds", "type"),
                "{{type}} p95": quantile(0.95, f"{JOBS}_seconds", "type"),
            },
            help="From a job's first attempt to its end.",
        ),
        Panel(
            "Webhooks",
            "ops",
            {"{{outcome}}": per_second(f"{JOBS}_webhooks_total", "outcome")},
            help="delivered; again: failed, and sent again unless it was the last attempt; gone:"
            " the receiver wants no more; refused: its address isn't allowed.",
        ),
        Panel(
            "Duration of a delivery",
            "s",
            {"p95": quantile(0.95, f"{JOBS}_webhook_seconds")},
        ),
        Panel(
            "Store",
            "short",
            {"store": greatest(f"{JOBS}_store_available")},
            names=("away", "answers"),
        ),
        Panel(
            "Disk of the queue",
            "bytes",
            {
                "free": aggregate("min", "", select(f"{JOBS}_free_bytes")),
                "jobs are refused below": greatest(f"{JOBS}_min_free_bytes"),
            },
        ),
    ),
)

WHAT_DO_CACHES_SAVE = Row(
    "What do caches save?",
    (
        Panel(
            "Pictures that weren't encoded again",
            "percentunit",
            {"{{model}}": hit_rate("features", MODEL)},
            help="Hits of the feature cache, over its lookups.",
        ),
        Panel(
            "Prompt tokens that weren't read again",
            "percentunit",
            {"{{model}}": hit_rate("prefix", MODEL)},
            help="Hits of the prefix cache, over its lookups.",
        ),
        Panel(
            "Prompt tokens saved",
            "ops",
            {
                "{{model}}": per_second(
                    f"{ENGINE}_cache_hits_total", "model", f'{MODEL}, cache="prefix"'
                )
            },
            help="Per second.",
        ),
        Panel(
            "Size",
            "bytes",
            {
                "{{model}} features": total(f"{ENGINE}_feature_cache_bytes", "model", MODEL),
                "{{model}} prefixes": total(f"{ENGINE}_prefix_cache_bytes", "model", MODEL),
            },
            help=(
                "Of all replicas. A cache that is always full may deserve more: feature_cache, "
                "prefix_cache."
            ),
        ),
    ),
)

HOW_FULL_ARE_GPUS = Row(
    "How full is the memory of GPUs?",
    (
        Panel(
            "Memory of replicas",
            "bytes",
            {
                "{{model}} {{replica}} {{kind}}": greatest(
                    f"{ENGINE}_memory_bytes",
                    "model, replica, kind",
                    f'{ON_GPU}, kind!="total"',
                )
            },
            help=(
                "allocated: in tensors; reserved: held by the allocator; share: what it may "
                "reserve."
            ),
        ),
        Panel(
            "Share in use",
            "percentunit",
            {
                "{{model}} {{replica}}": " / ".join(
                    greatest(
                        f"{ENGINE}_memory_bytes", "model, replica, unit", f'{ON_GPU}, kind="{kind}"'
                    )
                    for kind in ("reserved", "share")
                )
            },
            limit=0.97,
        ),
        Panel(
            "Reserved of each GPU",
            "percentunit",
            {
                "{{unit}}": total(f"{ENGINE}_memory_bytes", "unit", f'{ON_GPU}, kind="reserved"')
                + " / "
                + greatest(f"{ENGINE}_memory_bytes", "unit", f'{ON_GPU}, kind="total"')
            },
            help=(
                "By all replicas on it. CUDA itself takes up to a gigabyte of each process besides."
            ),
        ),
        Panel(
            "Work of GPUs",
            "percent",
            {"{{ip}} {{GpuIndex}}": greatest("ray_node_gpus_utilization", "ip, GpuIndex")},
        ),
    ),
)

ROWS = (
    IS_IT_UP,
    IS_IT_SLOW,
    IS_IT_FULL,
    WHAT_DO_JOBS_DO,
    WHAT_DO_CACHES_SAVE,
    HOW_FULL_ARE_GPUS,
)
