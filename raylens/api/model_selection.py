"""Which model does a task that not every model can do."""

from __future__ import annotations

from raylens.api.context import Context
from raylens.core.catalog import Dialect
from raylens.core.errors import ModelNotLoaded, RaylensError, UnsupportedTask
from raylens.core.types import REASONING, ModelInfo, Task


def required_capability(task: Task) -> str:
    """What a model must be able to: the task, or to reason about it."""
    return REASONING if getattr(task, "reasoning", False) else task.name


async def select_model(context: Context, name: str | None, dialect: Dialect, task: Task) -> str:
    """The model that is named, or the default; where none is named and that can't do the task, the
    first that can.

    Raises ``UnsupportedTask``, which names the models that can, and ``ModelNotLoaded`` where one
    that is down might.
    """
    wanted = context.catalog.resolve(name, dialect)
    # Only where it must: a model that hangs would keep all others waiting.
    infos = await context.model_infos([wanted])
    if not _can(infos[wanted], task):
        infos = await context.model_infos(context.catalog.models)
    able = [model for model, info in infos.items() if _can(info, task)]
    if wanted in able:
        return wanted
    if able and not name:
        return able[0]
    raise _unable(wanted, task, able, infos, is_named=bool(name))


def _unable(
    wanted: str,
    task: Task,
    able: list[str],
    infos: dict[str, ModelInfo | ModelNotLoaded],
    *,
    is_named: bool,
) -> RaylensError:
    down = {model: info for model, info in infos.items() if isinstance(info, ModelNotLoaded)}
    for model, error in down.items():
        if model == wanted or not is_named:
            return error
    nobody = f"no model that is {'up' if down else 'served here'} can"
    others = f"these can: {', '.join(able)}" if able else nobody
    return UnsupportedTask(f"model: {wanted} can't {required_capability(task)}; {others}", "model")


def _can(info: ModelInfo | ModelNotLoaded, task: Task) -> bool:
    return isinstance(info, ModelInfo) and required_capability(task) in info.tasks
