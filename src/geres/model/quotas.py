"""Quotas: how much the users of a tenant may have at once, each of them and all together."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from geres.errors import Invalid

#: The `user` of a quota that holds for each user who has none of their own.
EACH = "*"
What = Literal["running", "cpus", "queued", "jobs"]
_LONGEST_NAME = 200
_MOST = 1_000_000_000_000


class Amounts(Struct, frozen=True, kw_only=True):
    """Of a quota, what is None is not limited."""

    running: int | None = None  #: tasks on nodes
    cpus: float | None = None  #: that tasks on nodes have asked for
    queued: int | None = None  #: tasks that wait, in open jobs; those of an array that have no row yet too
    jobs: int | None = None  #: that have not ended, without `default`


class Quota(Struct, frozen=True, kw_only=True):
    """The quota of a tenant (`user` is None), of one user, or of each user without an own one (`*`)."""

    tenant: str
    user: str | None
    most: Amounts
    used: Amounts | None = None  #: None for `*`


class SetQuota(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of PUT /v1/quotas.  What is left out stays; null takes a limit away."""

    user: str | None = None  #: None for the whole tenant, `*` for each user who has none of their own
    running: int | UnsetType | None = UNSET
    cpus: float | UnsetType | None = UNSET
    queued: int | UnsetType | None = UNSET
    jobs: int | UnsetType | None = UNSET

    def given(self) -> dict[What, int | None]:
        """The limits that are set or taken away; cpus in thousandths."""
        found: dict[What, int | None] = {}
        for name in ("running", "queued", "jobs"):
            value = getattr(self, name)
            if value is not UNSET:
                found[name] = value
        if self.cpus is not UNSET:
            found["cpus"] = None if self.cpus is None else round(self.cpus * 1000)
        return found


class QuotaQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/quotas."""

    user: str | None = None


def check(change: SetQuota) -> None:
    """Raise Invalid, naming the field, unless this can be a quota."""
    if change.user is not None and not (0 < len(change.user) <= _LONGEST_NAME and change.user.isprintable()):
        raise Invalid(f"user: {change.user[:80]!r} is no name of a user", field="user")
    if isinstance(change.cpus, float) and not math.isfinite(change.cpus):
        raise Invalid(f"cpus: {change.cpus} is no number", field="cpus")
    if not change.given():
        raise Invalid("quota: nothing to set; name running, cpus, queued or jobs", field="quota")
    for name, value in change.given().items():
        if value is not None and not 0 <= value <= _MOST:
            raise Invalid(f"{name}: {getattr(change, name):g} is not between 0 and {_MOST:,}", field=name)


def merge(own: Amounts, each: Amounts) -> Amounts:
    """What holds for a user: the own limits, else those of each user."""
    return Amounts(
        **{
            name: value if value is not None else getattr(each, name)
            for name, value in msgspec.structs.asdict(own).items()
        }
    )
