"""Which adapters a question is answered with: those in use, or those that are asked for. Loads no model."""

from dataclasses import dataclass
from typing import Any

from rag_app.adapters.manifest import check_base, check_prompts
from rag_app.adapters.registry import Registry
from rag_app.adapters.state import Uses, parsed
from rag_app.errors import AdapterInvalid, AdapterNotFound
from rag_app.settings import Options


@dataclass(frozen=True, slots=True)
class Choice:
    """Adapters for one answer."""

    uses: tuple[tuple[str, float], ...] = ()
    """As the engine's `stream` takes them."""
    names: tuple[str, ...] = ()
    """To be shown: NAME, or NAME:WEIGHT."""
    notes: tuple[str, ...] = ()
    """Why those in use were left out, for a person."""


def chosen(model: Any, options: Options, registry: Registry) -> Choice:
    """The adapters that a question is answered with.

    Those in use are left out, with a note, where they do not fit the model: it is the model that a person has changed.
    The bundled one, which nobody has chosen, is left out in silence, and with strategies that it was not trained for.

    Args:
        model: a `rag_app.generator.Generator`.
        options: how the question is answered.
        registry: the adapters there are.

    Raises:
        AdapterNotFound, AdapterInvalid: those that are asked for are not there or do not fit.
    """
    if "adapters" not in model.abilities:
        if options.adapter is not None and parsed(options.adapter):
            raise AdapterInvalid(
                f"the engine '{model.engine}' takes no adapters: leave out --adapter {options.adapter}"
            )
        return Choice()
    if options.adapter is not None:
        return _fitting(model, parsed(options.adapter), registry)
    state = registry.in_use()
    try:
        if not state.chosen and any(registry.get(u.name).manifest.strategy != options.strategy for u in state.active):
            return Choice()
        return _fitting(model, state.active, registry, trusting=state.chosen)
    except (AdapterNotFound, AdapterInvalid) as error:
        return Choice(notes=(f"answered without an adapter: {error}",) if state.chosen else ())


def _fitting(model: Any, uses: Uses, registry: Registry, trusting: bool = True) -> Choice:
    """These adapters for this model; where its weights are not known, only if a person is trusted to know them."""
    found = []
    for use in uses:
        entry = registry.get(use.name)
        check_prompts(entry.manifest)
        fingerprint = model.fingerprint()
        if fingerprint or not trusting:
            check_base(entry.manifest, model.check(), fingerprint or "unknown")
        found.append((model.adapter(entry), use.weight))
    return Choice(tuple(found), tuple(map(str, uses)))
