"""The vault: which half of a grammar's prompts nothing is tuned on."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.prompts.prompt import GrammarPrompt

SALT = "condmis_interp vault 1"
"""Changing it would change every side."""


def dealt(entries: Sequence[GrammarPrompt], *, public: Collection[str] = ()) -> frozenset[str]:
    """Returns the groups that are vaulted: half of the groups of each kind, by the hash of the group.

    Groups with paraphrases or opposites are dealt apart from the others, so that these kinds halve too.

    Args:
        entries: Prompts of one part each; the first of a group says what kind the group is of.
        public: Texts that occur elsewhere in the package; a group that has one stays open.
    """
    members: dict[str, list[GrammarPrompt]] = defaultdict(list)
    for entry in entries:
        members[entry.groups[0]].append(entry)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group, own in members.items():
        strata[own[0].kind, *sorted(p.kind for p in own[1:])].append(group)
    vaulted: set[str] = set()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (kind, *_), groups in sorted(strata.items()):
        known = {g for g in groups if any(text in public for p in members[g] for text in p.texts)}
        here = [0, 0]
        for group in sorted(groups, key=lambda g: (g not in known, digest([SALT, g]))):
            # the side that is behind in the stratum, then in the kind; the open one, if they are level
            behind = 0 if group in known or (here[0], counts[kind][0]) <= (here[1], counts[kind][1]) else 1
            here[behind] += 1
            counts[kind][behind] += 1
            if behind:
                vaulted.add(group)
    return frozenset(vaulted)


def hashed_sides(
    new: Sequence[GrammarPrompt], old: Sequence[GrammarPrompt], vaulted: Collection[str]
) -> frozenset[str]:
    """Returns the ids of new prompts that are vaulted: by the side of what they share, else by their group's hash.

    Raises:
        UserError: if a prompt shares a text or group with both sides.
    """
    sides: dict[str, bool] = {}
    for p in old:
        sides |= dict.fromkeys((*p.groups, *p.texts), p.id in vaulted)
    found = set()
    for cluster in _clusters(new):
        known = {sides[key]: key for p in cluster for key in (*p.groups, *p.texts) if key in sides}
        if len(known) > 1:
            raise UserError(
                f"prompts to be added share a text with the open half ({known[False][:60]!r}) and with the vault "
                f"({known[True][:60]!r})",
                where=f"prompt {cluster[0].id}",
                fix="Leave one of the two out, so that nothing vaulted gets into what is tuned.",
            )
        by_hash = int(digest([SALT, min(group for p in cluster for group in p.groups)]), 16) % 2 == 1
        if next(iter(known), by_hash):
            found |= {p.id for p in cluster}
    return frozenset(found)


def _clusters(prompts: Sequence[GrammarPrompt]) -> list[list[GrammarPrompt]]:
    """Returns prompts that share texts or groups, together."""
    leader: dict[str, str] = {}

    def top(key: str) -> str:
        while (above := leader.setdefault(key, key)) != key:
            key = above
        return key

    for p in prompts:
        for key in (*p.groups, *p.texts):
            leader[top(key)] = top(p.id)
    together: Mapping[str, list[GrammarPrompt]] = defaultdict(list)
    for p in prompts:
        together[top(p.id)].append(p)
    return list(together.values())
