"""Every model family that this installation knows, and the way from a model id or a folder to its variant.

Families come from the table below and from the entry-point group ``vireo.families``, so that another distribution can
bring one: its entry point names a ``Family``, and it is trusted like any package that is installed. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType

from models.contract import Family, LazyRef, Variant
from models.files import told_of
from models.folder import seen_in

GROUP = "vireo.families"

BUILT_IN: Mapping[str, LazyRef] = MappingProxyType(
    {
        "dyn-perceiver": LazyRef("models.families.dyn_perceiver.family:FAMILY"),
        "texthawk2": LazyRef("models.families.texthawk2.family:FAMILY"),
        "vdit": LazyRef("models.families.vdit.family:FAMILY"),
        "tunable-restore": LazyRef("models.families.tunable_restore.family:FAMILY"),
        "timm": LazyRef("models.families.timm.family:FAMILY"),
        "vllm": LazyRef("models.families.vllm.family:FAMILY"),
        "nitrofusion": LazyRef("models.families.nitrofusion.family:FAMILY"),
        "diffusers": LazyRef("models.families.diffusers.family:FAMILY"),
        "dit-moe": LazyRef("models.families.dit_moe.family:FAMILY"),
        "switch-dit": LazyRef("models.families.switch_dit.family:FAMILY"),
        "exvideo": LazyRef("models.families.exvideo.family:FAMILY"),
    }
)


@cache
def families() -> Mapping[str, Family]:
    """All families by name. Read once a process; ``families.cache_clear()`` reads them again.

    Raises: ValueError: two distributions bring one name or one variant id, or an entry point is not a Family.
    """
    found: dict[str, Family] = {}
    references = list(BUILT_IN.items())
    references += [(point.name, LazyRef(point.value)) for point in sorted(entry_points(group=GROUP))]
    for name, reference in references:
        family = reference.load()
        if not isinstance(family, Family) or family.name != name:
            raise ValueError(
                f"{reference.target} in group {GROUP} is not the family {name!r}; it must be a Family of that name"
            )
        if name in found:
            raise ValueError(f"family {name!r} is there twice; {reference.target} is the second")
        found[name] = family
    _check_unique(found)
    return MappingProxyType(found)


def _check_unique(found: Mapping[str, Family]) -> None:
    owners: dict[str, str] = {}
    for family in found.values():
        for variant in family.variants:
            if (other := owners.setdefault(variant.id, family.name)) != family.name:
                raise ValueError(f"variant {variant.id!r} is there twice, of {other} and {family.name}")


def find(model_id: str, weights: Path | None = None) -> tuple[Family, Variant]:
    """The family and variant behind a model id: one that is listed, or ``family:name`` of an open family. The family is
    as it is for that variant (``Family.of``).

    ``weights``: a folder to read them from instead of the usual one; an open family may read there what it holds. With
    it, the id may be any name of the user's own: ``recognise`` says what the folder is.

    Raises: ValueError: the id is unknown and the folder, if any, is not recognised; the message lists what is known.
    """
    for family in families().values():
        for variant in family.variants:
            if variant.id == model_id:
                return family.of(variant), variant if weights is None else variant.with_weights(weights)
    name, colon, rest = model_id.partition(":")
    open_family = families().get(name) if colon else None
    if open_family is not None and open_family.resolve is not None:
        variant = _resolved(open_family, rest, weights)
        return open_family.of(variant), variant
    if weights is not None and not colon:
        return _recognised(model_id, weights)
    close = "".join(f"; did you mean {known}?" for known in get_close_matches(model_id, known_ids(), 1))
    raise ValueError(f"unknown model {model_id!r}; known models: {', '.join(known_ids())}{close}")


def _resolved(family: Family, name: str, folder: Path | None) -> Variant:
    assert family.resolve is not None
    resolve = family.resolve.load()
    if folder is None:
        variant: Variant = resolve(name, None)
        return variant
    with told_of(folder, family.name):
        variant = resolve(name, folder)
        if family.shape == "job" and family.work is not None:  # numbers that do not go together show here
            family.work.load()(variant, variant.io.usual, family.of(variant).check_point({}))
        return variant


def _recognised(name: str, folder: Path) -> tuple[Family, Variant]:
    """What a folder is that was given a name. Exactly one family must know it."""
    found = recognise(folder)
    if len(found) == 1:
        return find(found[0], folder)
    if found:
        words = " or ".join(f"{name}={made_of}@{folder}" for made_of in found)
        raise ValueError(f"{folder} may be served as {' or as '.join(found)}: say which, {words}")
    able = ", ".join(family.name for family in families().values() if "recognise" in family.parts)
    close = "".join(f"; did you mean {known}?" for known in get_close_matches(name, known_ids(), 1))
    raise ValueError(
        f"{name!r} is no known model, and no family recognises {folder}: {seen_in(folder)}. Families that recognise "
        f"folders: {able}. To say what it is, write {name}=MODEL@{folder} with one of {', '.join(known_ids())}{close}"
    )


def recognise(folder: Path) -> tuple[str, ...]:
    """Ids under which open families would serve a folder, each ``family:name``. Reads a few small files.

    Raises: ValueError: there is no such folder, or it is of a family that cannot serve it, and of no other.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found, refused = [], []
    for family in families().values():
        if "recognise" in family.parts:
            try:
                with told_of(folder, family.name):
                    name = family.part("recognise")(folder)
            except ValueError as error:
                refused.append(error)
                continue
            found += [] if name is None else [f"{family.name}:{name}"]
    if refused and not found:
        raise refused[0]
    return tuple(found)


def family_for(name: str, variant: Variant) -> Family:
    """The family of that name as it is for a variant that it has resolved before. Raises: KeyError: no such family."""
    return families()[name].of(variant)


def default_variants() -> tuple[tuple[Family, Variant], ...]:
    """What is served where nobody says what. Of Vireo's own families: to install another one serves nothing."""
    ours = (families()[name] for name in BUILT_IN)
    return tuple((family.of(variant), variant) for family in ours for variant in family.variants if variant.is_default)


def known_ids(task: str | None = None) -> tuple[str, ...]:
    """Ids of all listed variants, and ``family:NAME`` for each open family. ``task``: those that are for it alone."""
    chosen = [family for family in families().values() if task is None or task in family.tasks]
    listed = [variant.id for family in chosen for variant in family.variants]
    return (*listed, *(f"{family.name}:NAME" for family in chosen if family.resolve is not None))
