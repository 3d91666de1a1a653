"""The application's configuration: the ``args`` of a Serve config file.

Every class is frozen, and refuses unknown keys. :mod:`raylens.core.environment` adds what
environment variables set.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from raylens.core.client_limits import NO_LIMITS, ClientLimits
from raylens.core.errors import InvalidRequest
from raylens.core.families import FamilySettings, RuntimeName, families, family_named
from raylens.core.keys import (
    DEFAULT_SCOPES,
    ApiKey,
    KeyRing,
    Scope,
    explain_key,
    read_keys_file,
)
from raylens.core.logs import LogSettings
from raylens.core.recipe import BUNDLED, DEFAULT, Recipe, choose
from raylens.core.webrtc_config import WebRtcConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86_400)]

RecipeChoice = str | dict[str, Any]
"""A recipe's name, or fields of :class:`raylens.core.recipe.Recipe` that change a recipe.

``name`` says which recipe they change. Without it, a model's recipe changes ``defaults.recipe``,
and every other one changes ``auto``.
"""

_ADDRESS_OR_NAME = re.compile(r"(\*\.)?[^\s/@?#*]+(/[0-9]{1,3})?")


def _check_address_or_name(entry: str) -> str:
    if not _ADDRESS_OR_NAME.fullmatch(entry):
        raise ValueError(f"expected an address, a network or a host name: {entry!r}")
    return entry


AddressOrName = Annotated[str, AfterValidator(_check_address_or_name)]
"""An address, a network (``10.1.0.0/16``), a host name, or ``*.example.com``."""


WebAddress = Annotated[str, Field(pattern=r"^https?://[^/?#\s]+\S*$")]
HostPattern = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?)$")]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Frozen(BaseModel):
    # Errors leave out what was entered: it may be a URL with a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


MAX_JOB_PICTURES = 10_000


class RequestLimits(Frozen):
    """Limits on one request, and on the requests in flight."""

    max_body_bytes: PositiveInt = 28 * 2**20
    """Base64 makes a picture a third larger than ``max_image_bytes``."""
    body_patience_s: PositiveFloat = 10.0
    """Timeout between two parts of a body."""
    min_body_bytes_per_s: PositiveInt = 4096
    """Least rate of a body, after ``body_patience_s``."""
    max_unfinished_bodies: PositiveInt = 512
    """Bodies that one replica of the ingress receives at a time. If there are more, the one that
    has taken the longest is refused."""
    max_unfinished_bodies_per_client: PositiveInt = 256
    """Of these, from one address, or one IPv6 network of 64 bits."""
    max_unfinished_bytes: PositiveInt = 512 * 2**20
    """Of all of them together. If there are more, the client with the most loses its oldest one."""
    max_json_bytes: PositiveInt = 2**20
    """JSON of a body, beside pictures and long texts."""
    max_json_values: PositiveInt = 20_000
    """Elements of lists and objects in a body of JSON."""
    max_in_flight: PositiveInt = 192
    """POST requests of one client that a replica of the ingress works on; more are refused as
    overloaded. For other clients there is a quarter more room."""
    max_image_bytes: PositiveInt = 20 * 2**20
    max_image_pixels: PositiveInt = 64_000_000
    max_filter_s: PositiveFloat = 5.0
    """What the noise reduction of one request may take, by estimate. A dearer one is skipped, and
    the answer's warnings say so."""
    min_image_side: PositiveInt = 4
    """Pixels."""
    max_image_side: PositiveInt = 16_384
    """Pixels."""
    max_images: PositiveInt = 16
    max_videos: PositiveInt = 4
    max_video_bytes: PositiveInt = 64 * 2**20
    """``max_body_bytes`` bounds videos within a body, too."""
    max_video_seconds: PositiveFloat = 3600.0
    max_video_pixels: PositiveInt = 9_000_000
    """Of one frame: 4K video has 8.3 million."""
    max_video_frames: Annotated[int, Field(ge=2, le=1024)] = 32
    """Frames that a model sees of one video."""
    max_text_chars: PositiveInt = 100_000
    max_tokens: PositiveInt = 4096
    max_answers: PositiveInt = 8
    """Upper bound of ``n``."""
    max_stop_strings: Annotated[int, Field(ge=1, le=1024)] = 64
    max_schema_bytes: PositiveInt = 64 * 2**10
    """Size of a JSON schema in ``response_format``, as compact JSON."""


class Defaults(Frozen):
    """Values for requests that don't set them."""

    timeout_s: PositiveFloat = 60.0
    max_timeout_s: PositiveFloat = 600.0
    """Upper bound of ``X-Request-Timeout``."""
    max_tokens: PositiveInt = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    recipe: RecipeChoice = "auto"
    """Preprocessing for models without a recipe of their own. docs/preprocessing.md explains the
    default."""


class DialectModels(Frozen):
    """The model for requests that name none, by dialect.

    If that model isn't served, the first of ``models`` answers.
    """

    openai: Name = "smolvlm"
    moondream: Name = "moondream"
    caption: Name = "moondream"
    generate: Name = "qwen2.5-vl"
    jobs: Name = "moondream"
    realtime: Name = "moondream"


class RealtimeConfig(Frozen):
    """Sessions of live video. Their answers count as requests."""

    max_sessions: Annotated[int, Field(ge=1, le=4096)] = 64
    """Open sessions of one client in a replica of the ingress; more are refused. For other clients
    there is a quarter more room."""
    idle_timeout_s: PositiveFloat = 300.0
    """Without a message, after which a session is closed."""
    max_frames: Annotated[int, Field(ge=2, le=256)] = 16
    """Frames that one question about the last few of them may have."""
    webrtc: WebRtcConfig = WebRtcConfig()


class RemoteConfig(Frozen):
    """The server behind a model whose runtime is not ``engine``."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^/?#\s]+[^?#\s]*$")] | None = None
    """Unset means Moondream Cloud for ``cloud``; ``openai`` requires it."""
    model: str | None = None
    """The server's name for the model. Unset means ``checkpoint``; for ``cloud``, the server's
    default model."""
    api_key_env: str | None = None
    """The environment variable that holds the API key. Unset means ``MOONDREAM_API_KEY`` or
    ``OPENAI_API_KEY``. The configuration itself never holds a key."""


ENGINE_SETTINGS = frozenset(
    {
        "revision",
        "dtype",
        "device",
        "threads",
        "max_tiles_per_step",
        "max_prefill_tokens",
        "max_prefill_slice_s",
        "max_deltas_per_s",
        "kv_cache",
        "feature_cache",
        "prefix_cache",
        "quantize",
        "cuda_graphs",
    }
)
"""Settings of a model that only the runtime ``engine`` reads."""


_SMOLVLM_KEYS = frozenset({"model_id", "model_name", "inference"})


class ModelConfig(Frozen):
    """One model, which becomes one deployment.

    A family may add settings of its own (:attr:`raylens.core.families.Family.settings`); they stand
    among these. The form of SmolVLM back ends is accepted too: ``model_name`` and ``model_id`` are
    names of the model, and the settings under ``inference`` are among these.
    """

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    name: Name
    family: str | None = None
    """Unset for a model behind the runtime ``openai`` that belongs to no known family, such as a
    text-only one."""
    checkpoint: str = "pocket"
    """A hub id, a folder, or ``pocket``: the tiny checkpoint that is bundled."""
    runtime: RuntimeName = "engine"
    """``engine`` is raylens's own, ``photon`` is Moondream's engine on a GPU, ``cloud`` is
    Moondream Cloud, and ``openai`` is any server that speaks OpenAI's API."""
    remote: RemoteConfig = RemoteConfig()
    revision: str | None = None
    """A branch, tag or commit of the checkpoint's hub repository."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    """``auto`` means CUDA if the replica holds a GPU, and the CPU otherwise."""
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """Torch threads of a replica; unset means torch's default."""
    aliases: tuple[Name, ...] = ()
    fallback: tuple[Name, ...] = ()
    """Models that answer in its place while it isn't loaded or has no room, in this order. The
    response says which one answered. Background jobs wait instead."""
    recipe: RecipeChoice | None = None
    """Preprocessing for this model; unset means ``defaults.recipe``."""
    max_image_size: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Upper bound of a preprocessed picture's longer side in pixels, whatever the recipe says."""
    expected_response_time: PositiveFloat | None = None
    """Seconds before a request without a timeout expires; unset means ``defaults.timeout_s``."""
    max_batch_size: Annotated[
        int, Field(ge=1, le=256, validation_alias=AliasChoices("max_batch_size", "batch_size"))
    ] = 8
    """Sequences that run together. ``batch_size`` is another name for this setting."""
    max_waiting: Annotated[int, Field(ge=0, le=4096)] = 24
    """Sequences of one client that may wait in a replica; more are refused as overloaded. For other
    clients there is a quarter more room."""
    max_tiles_per_step: PositiveInt | None = None
    """Tiles that the vision encoder encodes together. Running answers pause for about half of that
    time whenever a new one starts. Unset means 1 on a CPU and 64 on a GPU, whose CUDA graphs take
    16 tiles each."""
    max_prefill_tokens: Annotated[int, Field(ge=16, le=65_536)] | None = None
    """Maximum number of tokens in a prefill chunk, and in total for prompts that are prefilled
    together. Unset means 128 on a CPU, and 4096 on a GPU, where a slice may contain several
    prompts. A bidirectional prefix may exceed it."""
    max_prefill_slice_s: Annotated[float, Field(ge=0, le=10)] = 0.03
    """Time for prefill between two decode steps, in seconds. No further slice starts after it,
    except that one slice always runs, and two if few answers are running. On a GPU, exactly one
    runs."""
    max_deltas_per_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Events that a replica streams per second, all answers together. Tokens that come sooner are
    sent in one event; each answer still gets at least five events a second. Unset means 50 on a
    CPU, where streams take time from the model, and 200 on a GPU."""
    kv_cache: ByteSize | None = None
    """Memory for keys and values of running sequences, such as ``2GiB``. Unset means 1 GiB on a
    CPU, and what remains of the replica's share of the card on CUDA."""
    feature_cache: ByteSize = ByteSize(128 * 2**20)
    """Memory for features of pictures that were encoded before."""
    prefix_cache: ByteSize = ByteSize(256 * 2**20)
    """Memory for keys and values of prompts that were read before."""
    quantize: Literal["int8", "int4"] | None = None
    """``int8`` stores weights as bytes: faster decode steps on a CPU, and slightly less exact
    answers. ``int4`` stores those of the text model's layers in 4 bits: faster still, and less
    exact. It needs a C compiler (docs/cpu.md)."""
    cuda_graphs: bool = True
    """Replay decode steps, prefill and vision encoders as CUDA graphs. They take part of the
    share's working memory."""
    retry_after_s: PositiveFloat = 1.0
    """``Retry-After`` of answers that refuse a request as overloaded."""

    @property
    def capacity(self) -> int:
        """Sequences that one client may have in a replica."""
        return self.max_batch_size + self.max_waiting

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every name of the model: its own, its aliases, its hub id, and its family's aliases."""
        is_hub_id = self.checkpoint != "pocket" and not Path(self.checkpoint).exists()
        hub_id = (self.checkpoint,) if is_hub_id else ()
        family_aliases = () if self.family is None else family_named(self.family).aliases
        return (self.name, *self.aliases, *hub_id, *family_aliases)

    @property
    def family_settings(self) -> FamilySettings:
        """The settings that the family adds."""
        return self._family_settings_type.model_validate(self.model_extra or {})

    @property
    def _family_settings_type(self) -> type[FamilySettings]:
        return FamilySettings if self.family is None else family_named(self.family).settings

    @model_validator(mode="before")
    @classmethod
    def _read_smolvlm_form(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.keys() & _SMOLVLM_KEYS:
            return values
        values = dict(values)
        inference = values.pop("inference", None)
        if inference is not None:
            if not isinstance(inference, dict):
                raise ValueError("inference: expected an object")
            repeated = values.keys() & inference.keys()
            if repeated:
                raise ValueError(f"inference.{min(repeated)}: given twice")
            values |= inference
        other_names = [values.pop(key) for key in ("model_id", "model_name") if key in values]
        if "name" not in values and other_names:
            values["name"] = other_names.pop(0)
        aliases = values.get("aliases", ())
        if isinstance(aliases, list | tuple):
            values["aliases"] = [*aliases, *other_names]
        if "family" not in values:
            names = {values.get("name"), *other_names}
            known = [family.name for family in families().values() if names & {*family.aliases}]
            if known:
                values["family"] = known[0]
        return values

    @field_validator("family")
    @classmethod
    def _family_is_known(cls, name: str | None) -> str | None:
        return name if name is None else family_named(name).name

    @model_validator(mode="after")
    def _family_has_the_extra_settings(self) -> Self:
        for key in self.model_extra or {}:
            if key not in self._family_settings_type.model_fields:
                raise _unknown_setting(key)
        _ = self.family_settings
        return self

    @model_validator(mode="after")
    def _runtime_serves_the_family(self) -> Self:
        if self.family is None:
            if self.runtime != "openai":
                raise ValueError(
                    "family: missing; only the runtime openai serves a model without"
                    f" one; known: {', '.join(families())}"
                )
        elif self.runtime not in family_named(self.family).runtimes:
            serving = [name for name, f in families().items() if self.runtime in f.runtimes]
            raise ValueError(f"runtime: {self.runtime} serves the family {', '.join(serving)} only")
        return self

    @model_validator(mode="after")
    def _runtime_has_what_it_needs(self) -> Self:
        names_a_model = self.remote.model or self.checkpoint != "pocket"
        if self.runtime == "openai" and not self.remote.base_url:
            raise ValueError("remote.base_url: missing; the runtime openai needs it")
        if self.runtime in ("photon", "openai") and not names_a_model:
            raise ValueError(f"remote.model: missing; the runtime {self.runtime} needs it")
        if self.runtime == "engine":
            if self.remote != RemoteConfig():
                raise ValueError("remote: the runtime engine has no server")
            return self
        engine_only = ENGINE_SETTINGS | self.family_settings.engine_only
        unused = engine_only & (self.model_fields_set | set(self.model_extra or {}))
        if unused:
            raise ValueError(f"{min(unused)}: only the runtime engine has this setting")
        return self


def _unknown_setting(key: str) -> ValidationError:
    """Return the error for a key that neither ModelConfig nor the model's family has."""
    others = [name for name, family in families().items() if key in family.settings.model_fields]
    message = f"only for the family {', '.join(others)}" if others else "unknown setting"
    problem = PydanticCustomError("unknown_setting", "{message}", {"message": message})
    details = InitErrorDetails(type=problem, loc=(key,), input=None)
    return ValidationError.from_exception_data("ModelConfig", [details])


class WebhooksConfig(Frozen):
    """How webhooks are signed and delivered."""

    secrets_env: str = "RAYLENS_WEBHOOK_SECRETS"
    """The environment variable with the secret that signs webhooks of jobs without their own:
    ``whsec_`` and base64. Two secrets, separated by a space, allow rotation."""
    public_url: str = ""
    """The URL by which callers reach this server, such as ``https://vlm.example.com``. Webhooks
    link results that are too large for their bodies."""
    allow: tuple[AddressOrName, ...] = ()
    """Networks (``10.1.0.0/16``), addresses and host names that webhooks may reach although they
    aren't public."""
    started: bool = False
    """Whether ``job.started`` is delivered too."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 15.0
    max_per_host: Annotated[int, Field(ge=1, le=64)] = 4
    """Concurrent deliveries to one host."""
    max_at_once: Annotated[int, Field(ge=1, le=256)] = 32
    """Concurrent deliveries in all."""
    redeliveries_per_minute: Annotated[int, Field(ge=1, le=1000)] = 10
    """Deliveries of one job that may be sent again in a minute."""
    client_id: str = ""
    """Part of the deliveries' User-Agent."""


class ApiKeyConfig(Frozen):
    """One key. ``raylens key new NAME`` makes it, and prints this entry."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.@-]{0,63}$")]
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = DEFAULT_SCOPES
    """``infer``, ``jobs`` (with files and batches), and ``admin``."""
    limits: ClientLimits = NO_LIMITS
    """Those that it doesn't set are ``client_limits``."""

    def to_key(self) -> ApiKey:
        return ApiKey(self.name, self.hash, frozenset(self.scopes), self.limits)


class AuthConfig(Frozen):
    """The keys that requests need."""

    keys: tuple[ApiKeyConfig, ...] = ()
    keys_file: Path | None = None
    """A YAML file with more of them under ``keys``. Every node with a replica of the ingress, or
    with the job queue, needs it."""

    def key_ring(self) -> KeyRing:
        """Return all keys. Raises ``ValueError`` if there are none, or if the file is invalid."""
        keys = [entry.to_key() for entry in self.keys]
        if self.keys_file is not None:
            for number, entry in enumerate(read_keys_file(self.keys_file)):
                try:
                    keys.append(ApiKeyConfig.model_validate(entry).to_key())
                except ValidationError as error:
                    message = f"{self.keys_file}: keys.{number}.{explain_key(error)}"
                    raise ValueError(message) from None
        if not keys:
            raise ValueError("auth: expected keys or a keys_file with at least one key")
        return KeyRing(keys)


class FetchConfig(Frozen):
    """Downloads of pictures and videos whose web addresses a request contains."""

    mode: Literal["off", "public", "list"] = "public"
    """``public`` means any public address and what ``allow`` adds, ``list`` only what ``allow``
    contains."""
    allow: tuple[AddressOrName, ...] = ()
    """Networks (``10.1.0.0/16``), addresses, host names, and all names of a domain
    (``*.example.com``)."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    """For one file, with all redirects and attempts."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    max_at_once: Annotated[int, Field(ge=1, le=1024)] = 32
    """Concurrent downloads of one replica of the ingress; more of them wait."""
    max_per_host: Annotated[int, Field(ge=1, le=1024)] = 16
    """Of these, from one host, so that a slow one doesn't hold up the others."""
    cache: ByteSize = ByteSize(64 * 2**20)
    """Memory of one replica for files that were downloaded before."""


class PictureSourceConfig(Frozen):
    """Where jobs find the pictures that ``query.ids`` and ``domain_id`` name."""

    kind: str | None = None
    """``files``, ``domain``, or the name of a plugin. Unset means ``files`` if there is a ``url``,
    ``domain`` if there are ``api_url`` and ``dds_url``, and otherwise none."""
    url: str | None = None
    """Of ``files``: a folder, or an fsspec URL (``s3://…``)."""
    api_url: str | None = None
    """Of ``domain``: the service that logs users in."""
    dds_url: str | None = None
    """Of ``domain``: the service that knows the domains' servers."""
    email_env: str = "POSEMESH_EMAIL"
    """The environment variable with the user's email address."""
    password_env: str = "POSEMESH_PASSWORD"
    domain_id: str = ""
    """The domain of jobs that name none. Empty means all of ``url``; ``domain`` needs one."""
    client_id: str = ""
    """This client's name to the domain data service; empty means that of webhooks, or raylens."""
    max_bytes: ByteSize = ByteSize(256 * 2**20)
    """Of all pictures of one job that come from the source."""

    @property
    def source(self) -> str | None:
        """The kind, also if it follows from the other settings."""
        if self.kind is not None:
            return self.kind
        if self.url:
            return "files"
        return "domain" if self.api_url and self.dds_url else None

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if self.source == "files" and not self.url:
            raise ValueError("url: missing; the kind files needs it")
        if self.source == "domain" and not (self.api_url and self.dds_url):
            raise ValueError("api_url: missing, or dds_url; the kind domain needs both")
        return self


class WatchesConfig(Frozen):
    """Cameras and folders that the server watches by itself."""

    allow: tuple[AddressOrName, ...] = ()
    """Networks (``192.168.1.0/24``), addresses and host names of cameras that may be watched. No
    others are. Folders may be watched under ``media_root``."""
    max_running: Annotated[int, Field(ge=1, le=4096)] = 16
    """Watches at a time; more are refused."""


class JobsConfig(Frozen):
    """The durable queue of background jobs. docs/jobs.md has its guarantees."""

    enabled: bool = True
    store: str = "sqlite"
    """``sqlite`` is a file in ``data_dir``, for one head node; ``postgresql://…`` serves any number
    of nodes."""
    data_dir: Path = Path("~/.local/share/raylens")
    blobs: str | None = None
    """Where pictures of jobs are stored: a folder, or an fsspec URL (``s3://…``). Unset means
    ``data_dir/blobs``."""
    picture_source: PictureSourceConfig = PictureSourceConfig()
    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    """Jobs that run at once."""
    capacity: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Jobs that may wait; more are refused with 429."""
    max_images: Annotated[int, Field(ge=1, le=MAX_JOB_PICTURES)] = 256
    """Pictures in one job. ``limits.max_body_bytes`` bounds them too."""
    max_picture_bytes: ByteSize = ByteSize(20 * 2**30)
    """Bytes of the pictures of all jobs, such as ``20GiB``; more are refused with 507."""
    min_free_bytes: ByteSize = ByteSize(512 * 2**20)
    """Free bytes of the disk with ``data_dir`` under which jobs are refused with 507."""
    max_file_bytes: ByteSize = ByteSize(100 * 2**20)
    """Bytes of a file that is uploaded for a batch of requests."""
    max_batch_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000
    """Requests in one such file."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Attempts without progress. Those that end for lack of capacity don't count."""
    backoff_s: Seconds = 1.0
    """Upper bound of the wait before the first retry; it doubles with each further retry."""
    max_backoff_s: Seconds = 60.0
    attempt_timeout_s: Seconds = 600.0
    """Of one attempt; for jobs that retry their pictures one by one, of an attempt at a picture."""
    queue_timeout_s: Seconds = 5.0
    """How long a request waits for the queue; then it is refused with 503."""
    max_requests: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests that change something in the queue, and that one replica of the ingress works on;
    more are refused as overloaded. They don't count towards ``limits.max_in_flight``."""
    max_reads: Annotated[int, Field(ge=1, le=4096)] = 192
    """Requests that only read, such as for a job's state, and that one replica of the ingress works
    on; more are refused as overloaded."""
    max_event_streams: Annotated[int, Field(ge=1, le=4096)] = 512
    """Open streams of events of one replica of the ingress; more are refused as overloaded."""
    timeout_s: Seconds = 86_400.0
    """From submission until the job fails, for jobs that set no timeout."""
    lease_s: Annotated[float, Field(ge=1, le=600)] = 15.0
    """A job whose process died is claimed again after this time."""
    result_ttl_s: Seconds = 7 * 86_400.0
    """How long a finished job is kept."""
    failed_pictures_ttl_s: Seconds = 86_400.0
    """How long the pictures of a failed or canceled job are kept. Without them, it can't be
    retried."""
    batch_concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Pictures of a ``batch`` job, or requests of an ``openai_batch`` job, that are in flight at a
    time."""
    image_batch_size: Annotated[int, Field(ge=1, le=64)] = 5
    """Frames of a ``task_timing_v1`` job that are in flight at a time."""
    llm: Name | None = None
    """The model, one of ``models``, that interprets and summarizes findings of jobs. It may be
    text-only."""
    webhooks: WebhooksConfig = WebhooksConfig()
    watches: WatchesConfig = WatchesConfig()

    @field_validator("llm", mode="before")
    @classmethod
    def _llm_is_a_name(cls, value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError(
                "expected the name of one of models; a server's model is one with runtime: openai"
            )
        return value

    @model_validator(mode="after")
    def _store_is_known(self) -> Self:
        if self.store != "sqlite" and not self.store.startswith(("postgresql://", "postgres://")):
            raise ValueError("store: expected sqlite or a postgresql:// URL")
        if self.blobs_url.startswith("memory://"):
            raise ValueError("blobs: a memory:// URL does not survive a restart")
        return self

    @property
    def folder(self) -> Path:
        return self.data_dir.expanduser().absolute()

    @property
    def blobs_url(self) -> str:
        return self.blobs or str(self.folder / "blobs")

    @property
    def is_tied_to_a_node(self) -> bool:
        """Whether the queue keeps files, which only one node can see."""
        protocol = self.blobs_url.partition("://")[0] if "://" in self.blobs_url else "file"
        return self.store == "sqlite" or protocol in ("file", "local")


class Links(Frozen):
    """Other pages about this server, as browsers reach them. The page's status links them."""

    ray_dashboard: WebAddress | None = None
    """Unset links it for browsers on the server's own machine only."""
    grafana: WebAddress | None = None
    prometheus: WebAddress | None = None


class AppConfig(Frozen):
    """The application, except for replicas, resources and queues, which are Serve's settings."""

    models: tuple[ModelConfig, ...]
    recipes: dict[Name, RecipeChoice] = {}
    """Named recipes, beside the bundled ``plain``, ``auto`` and ``enhanced``. A recipe may build on
    those before it."""
    limits: RequestLimits = RequestLimits()
    defaults: Defaults = Defaults()
    dialect_models: DialectModels = DialectModels()
    jobs: JobsConfig = JobsConfig()
    realtime: RealtimeConfig = RealtimeConfig()
    fetch: FetchConfig = FetchConfig()
    media_root: Path | None = None
    """The folder whose pictures and videos requests may name by path, or as ``file://`` URLs; unset
    allows no paths. Every node with a replica of the ingress needs it."""
    auth: AuthConfig | Literal["none"] | None = None
    """Who may send requests. Unset means everybody, but only on a loopback address: a server that
    other machines can reach needs keys, or ``none`` spelled out."""
    client_limits: ClientLimits = NO_LIMITS
    """What each key may ask for, or each address if there are no keys. A key may have limits of its
    own."""
    cors_origins: tuple[str, ...] | None = None
    """Origins of the web pages that may use this server; unset allows every port of localhost."""
    allowed_hosts: tuple[HostPattern, ...] = ()
    """Names of this server beside localhost and its addresses: ``name.example.com``, all names of a
    domain (``*.example.com``), or ``*`` for any. A request for another name is refused."""
    links: Links = Links()
    preprocessor_threads: Annotated[int, Field(ge=1, le=64)] = 2
    preprocessor_memory: ByteSize = ByteSize(5 * 2**28)
    """Of one replica, for the pictures and videos in its threads. Those that don't fit beside the
    others wait; those that would take more than all of it are refused."""
    vram_threshold: Annotated[float, Field(gt=0, le=1)] | None = 0.85
    """Fraction of a replica's share of a GPU, without its KV cache, above which unused memory is
    given back and caches are shrunk; null never does it."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    log_dir: Path | None = None
    """A folder for log files, beside standard error: one for each process, which rotates at 10 MiB
    and keeps five older ones."""
    compat_env: bool = False
    """Whether environment variables of other servers, such as ``QUEUE_SIZE``, count:
    :mod:`raylens.core.environment` lists them."""

    @model_validator(mode="after")
    def _model_names_are_unique(self) -> Self:
        if not self.models:
            raise ValueError("models: expected at least one")
        seen: set[str] = set()
        for model in self.models:
            for name in (model.name, *model.aliases):
                if name in seen:
                    raise ValueError(f"models: the name {name!r} is used twice")
                seen.add(name)
        return self

    @model_validator(mode="after")
    def _fallbacks_are_served(self) -> Self:
        names = {model.name for model in self.models}
        for model in self.models:
            for name in model.fallback:
                if name == model.name or name not in names:
                    message = f"models: {model.name}: fallback: {name!r}"
                    raise ValueError(f"{message}; expected the name of another model")
        return self

    @model_validator(mode="after")
    def _recipes_are_valid(self) -> Self:
        for model in self.models:
            self.recipe_of(model)
        return self

    @model_validator(mode="after")
    def _llm_is_served(self) -> Self:
        names = {name for model in self.models for name in model.all_names}
        if self.jobs.llm is not None and self.jobs.llm not in names:
            known = ", ".join(model.name for model in self.models)
            raise ValueError(f"jobs.llm: unknown model {self.jobs.llm!r}; known: {known}")
        return self

    @model_validator(mode="after")
    def _deadlines_are_within_bounds(self) -> Self:
        limit = self.defaults.max_timeout_s
        for model in self.models:
            if (model.expected_response_time or 0) > limit:
                raise ValueError(
                    f"models: {model.name}: expected_response_time:"
                    f" {model.expected_response_time:g}; the limit is defaults.max_timeout_s,"
                    f" {limit:g}"
                )
        return self

    @property
    def log_settings(self) -> LogSettings:
        return LogSettings(self.log_level, self.log_format, self.log_dir)

    def check_reach(self, host: str) -> None:
        """Raise ``ValueError`` if other machines reach ``host``, on which the server listens, and
        nothing says who may send requests."""
        if self.auth is None and not _is_loopback(host):
            raise ValueError(
                f"auth: other machines can reach this server at {host or 'every address'}; list"
                " the keys of those who may use it (raylens key new NAME), or let everyone in:"
                " auth: none, or RAYLENS_AUTH=none in the environment"
            )

    def named_recipes(self) -> dict[str, Recipe]:
        """Return all recipes that a request may name."""
        recipes = dict(BUNDLED)
        for name, choice in self.recipes.items():
            if name in BUNDLED:
                raise ValueError(f"recipes.{name}: the name of a bundled recipe")
            recipes[name] = _resolve(f"recipes.{name}", choice, DEFAULT, recipes)
        return recipes

    def recipe_of(self, model: ModelConfig) -> Recipe:
        """Return the recipe for requests that choose none."""
        named = self.named_recipes()
        default = _resolve("defaults.recipe", self.defaults.recipe, DEFAULT, named)
        return _resolve(f"models: {model.name}", model.recipe, default, named)


def _resolve(
    setting: str, choice: RecipeChoice | None, base: Recipe, named: dict[str, Recipe]
) -> Recipe:
    try:
        return choose(choice, base, named)
    except InvalidRequest as error:
        raise ValueError(f"{setting}: {error.message}") from None
