"""What the names of norms say, read without torch: their kind, and how they divide channels.

A name is that of a layer, with its options, and may go on with that of a norm of weights:
"group:8+ws" is group norm in 8 groups after convolutions whose weights are standardized.
"""

from dataclasses import dataclass

GROUP_SIZE = 16  # channels of `group` without an option
# short names, as in `normlab.norms`; torch's batch norm is one, whoever computes it
_FAMILIES = {
    "bcn": "batch_channel",
    "bgn": "batch_group",
    "bin": "batch_instance",
    "bn": "batch",
    "brn": "batch_renorm",
    "dsbn": "domain_batch",
    "ebn": "extended_batch",
    "fbn": "frozen_batch",
    "frn": "filter_response",
    "gbn": "ghost_batch",
    "gn": "group",
    "grn": "global_response",
    "in": "instance",
    "ln": "layer",
    "ln2d": "position",
    "lrn": "local_response",
    "nn": "none",
    "pono": "position",
    "sync_bn": "sync_batch",
    "torch_bn": "batch",
}


def parts(norm: str) -> tuple[str, str]:
    """The layer, and the norm of the weights before it; "" is none.

    >>> parts("group:8+ws"), parts("batch")
    (('group:8', 'ws'), ('batch', ''))
    """
    layer, _, weights = norm.partition("+")
    return layer, weights


def family(norm: str) -> str:
    """The norm without its options, under its long name; with weights, a family of its own.

    >>> family("gn:size=8"), family("torch_bn"), family("gn:8+ws")
    ('group', 'batch', 'group+ws')
    """
    layer, plus, weights = norm.partition("+")
    name = layer.partition(":")[0]
    return f"{_FAMILIES.get(name, name)}{plus}{weights}"


@dataclass(frozen=True)
class Division:
    """Into how many groups, or groups of how many channels, a norm divides the channels."""

    num_groups: int | None = None
    group_size: int | None = None

    @property
    def order(self) -> tuple[int, int]:
        """From few groups to many, whatever the width: counted ones first, then sized ones."""
        if self.num_groups is not None:
            return 0, self.num_groups
        return 1, -(self.group_size or 0)

    @property
    def words(self) -> str:
        if self.num_groups is not None:
            return "1 group" if self.num_groups == 1 else f"{self.num_groups} groups"
        return f"{self.group_size} per group"


def division(norm: str) -> Division | None:
    """How a norm divides channels; None if it does not, or normalizes weights too.

    >>> division("group:8").words, division("instance").words, division("batch")
    ('8 groups', '1 per group', None)
    """
    name, option = family(norm), norm.partition(":")[2]
    if not option and name in _PLAIN:
        return _PLAIN[name]
    size = option.removeprefix("size=")
    if name != "group" or not size.isdecimal() or not 0 < len(size) < 7 or not int(size):
        return None
    if size == option:
        return Division(num_groups=int(size))
    return Division(group_size=int(size))


_PLAIN = {
    "layer": Division(num_groups=1),
    "group": Division(group_size=GROUP_SIZE),
    "instance": Division(group_size=1),
}


def spelled_out(norm: str) -> str:
    """One name for all that compute the same; torch's own batch norm keeps its name.

    >>> spelled_out("gn:1"), spelled_out("group"), spelled_out("group:size=1+ws")
    ('layer', 'group:size=16', 'instance+ws')
    """
    layer, plus, weights = norm.partition("+")
    if plus:
        return f"{spelled_out(layer)}+{weights}"
    if norm == "torch_bn":
        return norm
    found = division(norm)
    if found is None:
        name, colon, option = norm.partition(":")
        return f"{family(name)}{colon}{option}"
    if found.num_groups is not None:
        return "layer" if found.num_groups == 1 else f"group:{found.num_groups}"
    return "instance" if found.group_size == 1 else f"group:size={found.group_size}"
