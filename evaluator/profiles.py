"""Profiles of an edition with their references resolved to plain metric names."""

from __future__ import annotations

from ..data_specs.errors import SpecError, UnknownName
from ..data_specs.spec_models import Edition, Profile
from .metrics.spec import FAMILIES, family_metrics


def resolve_profile(edition: Edition, name: str | None = None) -> Profile:
    """The named profile (None: the edition's default) as plain metric names, each once, in order.

    `@NAME` stands for another profile of the edition or, where none has this name, for a whole metric family.

    Raises
    ------
    UnknownName
        No such profile, or no such metric in the profile's family.
    SpecError
        A reference to nothing, or profiles that refer to each other in a circle.
    """
    key = name or edition.scoring.default_profile
    profile = edition.profile(key)
    family = profile.family or edition.scoring.pipeline
    listed = list(dict.fromkeys(_expanded(edition, key, ())))
    if family in FAMILIES:
        known = family_metrics(family)
        for metric in listed:
            if metric not in known:
                raise UnknownName("metric", metric, sorted(known), "vcbench list metrics")
    return profile.model_copy(update={"metrics": tuple(listed), "family": family})


def _expanded(edition: Edition, name: str, path: tuple[str, ...]) -> list[str]:
    out: list[str] = []
    for entry in edition.profiles[name].metrics:
        if not entry.startswith("@"):
            out.append(entry)
            continue
        target = entry[1:]
        if target in (*path, name) and target not in FAMILIES:
            raise SpecError(f"edition {edition.id}: profile {name!r} refers to itself through {entry!r}.")
        if target in edition.profiles and target != name:
            out += _expanded(edition, target, (*path, name))
        elif target in FAMILIES:
            out += family_metrics(target)
        else:
            raise SpecError(f"edition {edition.id}: profile {name!r} names {entry!r}, no profile or family.")
    return out
