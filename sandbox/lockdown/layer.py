"""One wall of a cell and whether it stands: what `lock_down` reports and `doctor` prints."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The state of one layer; an inactive one always says what would bring it up."""

    name: str
    active: bool
    detail: str  # active: what it denies; inactive: why it is missing
    remedy: str  # "" when active

    def __post_init__(self) -> None:
        assert self.active == (not self.remedy), self


def standing(name: str, detail: str) -> Layer:
    """Return an active layer."""
    return Layer(name=name, active=True, detail=detail, remedy="")


def missing(name: str, why: str, remedy: str) -> Layer:
    """Return an inactive layer with the reason and the way out."""
    return Layer(name=name, active=False, detail=why, remedy=remedy)
