"""Selection of a model for a task that only some models support."""

from __future__ import annotations

from raylens.api.context import Context
from raylens.core.catalog import Dialect
from raylens.core.errors import ModelNotLoaded, RaylensError, UnsupportedTask
from raylens.core.families import family_named
from raylens.core.types import REASONING, ModelInfo, Task, required_capability


async def select_model(
    context: Context, name: str | None, dialect: Dialect, task: Task, field: str = "model"
) -> str:
    """Return the model called ``name``, or a default model that supports ``task``.

    Without a ``name``, the dialect's default model goes first, then the first model that supports
    the task. Raises ``UnsupportedTask``, with the names of the models that support the task and
    the ``field`` that asks for it, and ``ModelNotLoaded`` if a model that is down might support it.
    """
    preferred = context.catalog.resolve(name, dialect)
    if context.catalog.models[preferred].fallback and await _is_down(context, preferred):
        return preferred  # the service finds the model that answers in its place
    # Query the other models only if necessary: a model that hangs would delay the answer.
    infos = await context.fetch_model_infos([preferred])
    if _supports(infos[preferred], task):
        return preferred
    # A request loads a model that was scaled to zero, and is refused there if it can't do the task.
    if _is_on_demand(infos[preferred]) and (name or _family_does(context, preferred, task)):
        return preferred
    infos = await context.fetch_model_infos(context.catalog.models)
    supporting = [model for model, info in infos.items() if _supports(info, task)]
    if not name:
        supporting += [
            model
            for model, info in infos.items()
            if _is_on_demand(info) and _family_does(context, model, task)
        ]
    if supporting and not name:
        return supporting[0]
    capability = required_capability(task)
    raise _unsupported(preferred, capability, supporting, infos, field, is_named=bool(name))


def _is_on_demand(info: ModelInfo | ModelNotLoaded) -> bool:
    return isinstance(info, ModelNotLoaded) and info.on_demand is not None


def _family_does(context: Context, model: str, task: Task) -> bool:
    """Return whether models of a model's family do a task; True if there is no family to ask."""
    family = context.catalog.models[model].family
    return family is None or required_capability(task) in family_named(family).tasks


async def _is_down(context: Context, model: str) -> bool:
    return isinstance((await context.fetch_model_infos([model]))[model], ModelNotLoaded)


async def refuse_incapable(context: Context, model: str, capability: str, field: str) -> None:
    """Raise ``UnsupportedTask`` if a model lacks a capability. One that is down passes."""
    info = (await context.fetch_model_infos([model]))[model]
    if isinstance(info, ModelNotLoaded) or capability in info.tasks:
        return
    infos = await context.fetch_model_infos(context.catalog.models)
    supporting = [name for name, other in infos.items() if _has(other, capability)]
    raise _unsupported(model, capability, supporting, infos, field, is_named=True)


def _unsupported(
    preferred: str,
    capability: str,
    supporting: list[str],
    infos: dict[str, ModelInfo | ModelNotLoaded],
    field: str,
    *,
    is_named: bool,
) -> RaylensError:
    down = {model: info for model, info in infos.items() if isinstance(info, ModelNotLoaded)}
    for model, error in down.items():
        if model == preferred or not is_named:
            return error
    if supporting:
        alternatives = f"supported by: {', '.join(supporting)}"
    elif down:
        alternatives = "no loaded model supports it"
    else:
        alternatives = "no served model supports it"
    noun = "reasoning" if capability == REASONING else capability
    return UnsupportedTask(
        f"{field}: {noun} is not supported by {preferred}; {alternatives}", field
    )


def _supports(info: ModelInfo | ModelNotLoaded, task: Task) -> bool:
    return _has(info, required_capability(task))


def _has(info: ModelInfo | ModelNotLoaded, capability: str) -> bool:
    return isinstance(info, ModelInfo) and capability in info.tasks
