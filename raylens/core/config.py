"""The application's configuration: the ``args`` of a Serve config file. Frozen; unknown keys are
refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from raylens.core.errors import InvalidRequest
from raylens.core.recipe import BUNDLED, DEFAULT, Recipe, choose

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]

RecipeChoice = str | dict[str, Any]
"""A recipe's name, or its fields as :class:`raylens.core.recipe.Recipe` has them; ``name`` gives
the one they change.

Without a name they change what would hold anyway: a model's recipe changes the default, all others
``auto``.
"""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestLimits(Frozen):
    """What a request may bring. A body carries pictures as base64, a third larger than their bytes."""

    max_body_bytes: PositiveInt = 28 * 2**20
    body_patience_s: PositiveFloat = 10.0
    """A body of which nothing comes for so long is given up."""
    max_in_flight: PositiveInt = 192
    """POST requests in one replica of the ingress, their bodies included; one more is refused as
    overloaded."""
    max_image_bytes: PositiveInt = 20 * 2**20
    max_image_pixels: PositiveInt = 64_000_000
    min_image_side: PositiveInt = 4
    max_image_side: PositiveInt = 16_384
    max_images: PositiveInt = 16
    max_text_chars: PositiveInt = 100_000
    max_tokens: PositiveInt = 4096
    max_answers: PositiveInt = 8
    max_stop_strings: PositiveInt = 4
    max_schema_bytes: PositiveInt = 64 * 2**10
    """Of the JSON schema that an answer should follow, as compact JSON."""


class Defaults(Frozen):
    """What holds where a request says nothing."""

    timeout_s: PositiveFloat = 60.0
    max_timeout_s: PositiveFloat = 600.0
    max_tokens: PositiveInt = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    recipe: RecipeChoice = "auto"
    """How pictures are prepared, for models that have no recipe of their own; docs/preprocessing.md
    tells why so."""


class DialectModels(Frozen):
    """The model that answers where a request names none; where it is not served, the first of
    ``models`` does."""

    openai: Name = "smolvlm"
    moondream: Name = "moondream"
    caption: Name = "moondream"
    jobs: Name = "moondream"


class RemoteConfig(Frozen):
    """Where a runtime that isn't our own engine finds its model."""

    base_url: str | None = None
    """Of the server; unset is Moondream Cloud for ``cloud``."""
    model: str | None = None
    """What the server calls the model; unset is the model's ``checkpoint``, or, for ``cloud``, the
    server's choice."""
    api_key_env: str | None = None
    """The environment variable that holds the key; unset is ``MOONDREAM_API_KEY`` or
    ``OPENAI_API_KEY``. Keys stand in no configuration."""


_OF_THE_ENGINE = frozenset(
    {
        "revision",
        "tokenizer_revision",
        "dtype",
        "device",
        "threads",
        "max_tiles_per_step",
        "max_prefill_tokens",
        "max_prefill_slice_s",
        "kv_cache",
        "feature_cache",
        "prefix_cache",
        "quantize",
        "cuda_graphs",
    }
)


class ModelConfig(Frozen):
    """One model deployment. ``checkpoint`` is a hub id, a folder, or ``pocket``: the tiny one that
    is bundled."""

    name: Name
    family: Literal["moondream", "smolvlm", "qwen2_5_vl"]
    checkpoint: str = "pocket"
    runtime: Literal["engine", "photon", "cloud", "openai"] = "engine"
    """What answers: our engine, Moondream's own on a GPU, Moondream's service, or a server that
    speaks OpenAI's API."""
    remote: RemoteConfig = RemoteConfig()
    revision: str | None = None
    tokenizer_revision: str | None = None
    """Of moondream/starmie-v1, Moondream's tokenizer, which lies beside no checkpoint on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    """``auto`` takes CUDA where the replica holds a GPU."""
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """Torch threads of a replica; unset leaves torch's choice."""
    aliases: tuple[Name, ...] = ()
    recipe: RecipeChoice | None = None
    """How pictures are prepared for this model; unset takes ``defaults.recipe``."""
    max_image_size: Annotated[int, Field(ge=16, le=4096)] | None = None
    """A picture's longer side after preprocessing, in pixels, whatever the recipe says."""
    expected_response_time: PositiveFloat | None = None
    """Seconds until the deadline of a request that names none; unset takes ``defaults.timeout_s``."""
    max_batch_size: Annotated[
        int, Field(ge=1, le=256, validation_alias=AliasChoices("max_batch_size", "batch_size"))
    ] = 8
    """Sequences that run together; ``batch_size`` is another name for it."""
    max_waiting: Annotated[int, Field(ge=0, le=4096)] = 24
    """Sequences that may wait in a replica; one more is refused as overloaded."""
    max_tiles_per_step: PositiveInt | None = None
    """Tiles that the vision tower encodes at a time; running answers wait for about half of their
    time where a new one enters. Unset takes 1 on a CPU, and 64 on a GPU, whose graphs take 16 at a
    time."""
    max_prefill_tokens: Annotated[int, Field(ge=16, le=65_536)] | None = None
    """Tokens of prompts that are read at a time. Unset takes 128 on a CPU, and 4096 on a GPU, of
    several prompts."""
    max_prefill_slice_s: Annotated[float, Field(ge=0, le=10)] = 0.03
    """How long running answers may wait while small pieces of new ones are read; one piece is
    always read. A GPU reads one at a time."""
    kv_cache: ByteSize | None = None
    """Memory for the keys and values of running sequences, such as ``2GiB``. Unset takes 1 GiB on a
    CPU, and on CUDA what is left of the replica's share of the card."""
    feature_cache: ByteSize = ByteSize(128 * 2**20)
    """Memory for the features of pictures that were seen before."""
    prefix_cache: ByteSize = ByteSize(256 * 2**20)
    """Memory for the keys and values of prompts that were read before."""
    quantize: Literal["int8"] | None = None
    """``int8`` keeps weights as bytes, which on a CPU makes decoding faster and answers a little
    less exact."""
    cuda_graphs: bool = True
    """On CUDA, replays decode steps, prompts and vision encoders as CUDA graphs. They take some of
    the share's working memory."""
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    """Bounds of a picture's area where the family has dynamic resolution; unset takes the
    checkpoint's."""
    retry_after_s: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _runtimes_fit(self) -> Self:
        if self.runtime in ("photon", "cloud") and self.family != "moondream":
            raise ValueError(f"{self.name}: runtime: {self.runtime} is for the family moondream")
        if self.runtime == "openai" and not self.remote.base_url:
            raise ValueError(f"{self.name}: remote.base_url: the runtime openai needs the server's")
        if (
            self.runtime in ("photon", "openai")
            and not self.remote.model
            and self.checkpoint == "pocket"
        ):
            raise ValueError(
                f"{self.name}: remote.model: the runtime {self.runtime} needs to know which"
            )
        if self.runtime == "engine" and self.remote != RemoteConfig():
            raise ValueError(f"{self.name}: remote: the runtime engine has its model here")
        idle = _OF_THE_ENGINE & self.model_fields_set
        if self.runtime != "engine" and idle:
            raise ValueError(
                f"{self.name}: {min(idle)}: only the runtime engine knows this setting"
            )
        return self

    @model_validator(mode="after")
    def _pixels_are_bounds(self) -> Self:
        given = self.min_pixels is not None or self.max_pixels is not None
        if given and self.family != "qwen2_5_vl":
            raise ValueError(
                f"{self.name}: min_pixels, max_pixels: {self.family} has no dynamic resolution"
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"{self.name}: min_pixels: {self.min_pixels}; max_pixels is {self.max_pixels}"
            )
        return self


Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86_400)]


class WebhooksConfig(Frozen):
    """How callers are told that a job has ended."""

    secrets_env: str = "RAYLENS_WEBHOOK_SECRETS"
    """The environment variable with the secret that signs where a job brings none of its own:
    ``whsec_`` and base64; two of them, with a space between, while one replaces the other."""
    public_url: str = ""
    """Where callers reach this server, such as ``https://vlm.example.com``: for the address of a
    result that is too large for a webhook."""
    allow: tuple[str, ...] = ()
    """Networks (``10.1.0.0/16``), addresses and names of hosts that may be called though they are
    not public."""
    started: bool = False
    """Whether ``job.started`` is told too."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 15.0
    max_per_host: Annotated[int, Field(ge=1, le=64)] = 4
    """Deliveries to one host at a time."""
    max_at_once: Annotated[int, Field(ge=1, le=256)] = 32
    client_id: str = ""
    """Stands in the User-Agent of deliveries."""

    @model_validator(mode="after")
    def _entries_are_addresses_or_names(self) -> Self:
        for entry in self.allow:
            if not _ADDRESS_OR_NAME.fullmatch(entry):
                raise ValueError(f"allow: {entry!r} is no address, no network and no host's name")
        return self


class LlmConfig(Frozen):
    """The language model that reads what a job has found, and words it: one of the graph's own, or
    a server's."""

    model: str
    base_url: str | None = None
    """Of a server that speaks OpenAI's API, such as Ollama's ``http://127.0.0.1:11434/v1``; unset
    means that ``model`` is one of ``models``."""
    api_key_env: str | None = None
    """The environment variable that holds the server's key; unset sends none."""

    @model_validator(mode="after")
    def _the_key_is_a_servers(self) -> Self:
        if self.api_key_env is not None and self.base_url is None:
            raise ValueError("api_key_env: only a server, at base_url, takes a key")
        return self


class JobsConfig(Frozen):
    """The durable queue of background jobs. docs/jobs.md tells what it promises."""

    enabled: bool = True
    store: str = "sqlite"
    """``sqlite``, a file in ``data_dir``, for one head node; or ``postgresql://…``, for any number
    of nodes."""
    data_dir: Path = Path("~/.local/share/raylens")
    blobs: str | None = None
    """Where pictures of jobs are kept: a folder, or a URL of fsspec's (``s3://…``); unset is
    ``data_dir/blobs``."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    """Jobs that run at once."""
    capacity: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Jobs that may wait; one more is refused with 429."""
    max_images: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Pictures in one job; ``limits.max_body_bytes`` bounds them too."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    backoff_s: Seconds = 1.0
    """Of the first retry; each further one waits up to twice as long."""
    max_backoff_s: Seconds = 60.0
    attempt_timeout_s: Seconds = 600.0
    timeout_s: Seconds = 86_400.0
    """From submission to the end, where a job says nothing; past it the job has failed."""
    lease_s: Annotated[float, Field(ge=1, le=600)] = 15.0
    """A job whose process has died is taken over after so long."""
    result_ttl_s: Seconds = 7 * 86_400.0
    """How long a job is kept after its end."""
    batch_concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Pictures of one job that are asked about at a time."""
    image_batch_size: Annotated[int, Field(ge=1, le=64)] = 5
    """Frames of a ``task_timing_v1`` job that are looked at together."""
    llm: LlmConfig | None = None
    webhooks: WebhooksConfig = WebhooksConfig()

    @model_validator(mode="after")
    def _store_is_known(self) -> Self:
        if self.store != "sqlite" and not self.store.startswith(("postgresql://", "postgres://")):
            raise ValueError("store: sqlite, or a postgresql:// URL, is needed")
        if self.blobs_url.startswith("memory://"):
            raise ValueError(
                "blobs: a memory:// URL forgets pictures that were promised to be kept"
            )
        return self

    @property
    def folder(self) -> Path:
        return self.data_dir.expanduser().absolute()

    @property
    def blobs_url(self) -> str:
        return self.blobs or str(self.folder / "blobs")

    @property
    def is_tied_to_a_node(self) -> bool:
        """Whether something of it is a file, which only one node has."""
        protocol = self.blobs_url.partition("://")[0] if "://" in self.blobs_url else "file"
        return self.store == "sqlite" or protocol in ("file", "local")


_ADDRESS_OR_NAME = re.compile(
    r"[0-9a-fA-F.:]+(/[0-9]{1,3})?|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"
)


class AppConfig(Frozen):
    """Everything about the application that is not Serve's own business (replicas, resources,
    queues)."""

    models: tuple[ModelConfig, ...]
    recipes: dict[Name, RecipeChoice] = {}
    """Recipes by name, beside the bundled ``plain``, ``auto`` and ``enhanced``; each may build on
    those above it."""
    limits: RequestLimits = RequestLimits()
    defaults: Defaults = Defaults()
    dialect_models: DialectModels = DialectModels()
    jobs: JobsConfig = JobsConfig()
    cors_origins: tuple[str, ...] | None = None
    """Allowed origins; unset allows every port of localhost."""
    preprocessor_threads: Annotated[int, Field(ge=1, le=64)] = 2
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _models_have_names_of_their_own(self) -> Self:
        if not self.models:
            raise ValueError("models: at least one is needed")
        seen: set[str] = set()
        for model in self.models:
            for name in (model.name, *model.aliases):
                if name in seen:
                    raise ValueError(f"models: the name {name!r} is given twice")
                seen.add(name)
        return self

    @model_validator(mode="after")
    def _recipes_are_whole(self) -> Self:
        for model in self.models:
            self.recipe_of(model)
        return self

    @model_validator(mode="after")
    def _llm_is_served(self) -> Self:
        llm = self.jobs.llm
        names = {name for model in self.models for name in (model.name, *model.aliases)}
        if llm is not None and llm.base_url is None and llm.model not in names:
            raise ValueError(
                f"jobs.llm.model: {llm.model!r} is none of models, and there is no jobs.llm.base_url"
            )
        return self

    @model_validator(mode="after")
    def _deadlines_are_within_bounds(self) -> Self:
        longest = self.defaults.max_timeout_s
        for model in self.models:
            if (model.expected_response_time or 0) > longest:
                raise ValueError(
                    f"models: {model.name}: expected_response_time: the limit is defaults.max_timeout_s, {longest:g}"
                )
        return self

    def named_recipes(self) -> dict[str, Recipe]:
        """All recipes that a request may name."""
        named = dict(BUNDLED)
        for name, recipe in self.recipes.items():
            if name in BUNDLED:
                raise ValueError(f"recipes.{name}: a bundled recipe has this name")
            named[name] = _chosen(f"recipes.{name}", recipe, DEFAULT, named)
        return named

    def recipe_of(self, model: ModelConfig) -> Recipe:
        """What holds for a model where a request says nothing."""
        named = self.named_recipes()
        default = _chosen("defaults.recipe", self.defaults.recipe, DEFAULT, named)
        return _chosen(f"models: {model.name}", model.recipe, default, named)


def _chosen(
    where: str, recipe: RecipeChoice | None, base: Recipe, named: dict[str, Recipe]
) -> Recipe:
    try:
        return choose(recipe, base, named)
    except InvalidRequest as error:
        raise ValueError(f"{where}: {error.message}") from None
