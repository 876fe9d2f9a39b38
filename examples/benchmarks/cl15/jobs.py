"""The runs of a comparison: which there are, in what order, and where the files of each lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orders import LONG, METHODS, ORDERS, OURS, SHORT, Method

# Orders 5 and 6, and order 4 with other seeds, cost hours: there the best of the others are enough.
EVERYWHERE = ("ours", "kin", "sequential", "replay 5%", "der", "merged", "distilled", "multitask")
# Made of the same adapters and rows whatever the order: measured in the first order of a group only.
ONCE = ("zero-shot", "multitask", "multitask slow", "merged", "merged ctm", "distilled")
# Four tasks at once are learned at the rate that was chosen; `ctm` came when the hubs of orders 1 to 3 were gone.
LONG_ONLY = ("multitask slow", "merged ctm")
TOLD = ("merged", "merged ctm", "distilled", "ours", "kin")  # what the router can be told or not told the task for


@dataclass
class Job:
    """A method, an order and a seed; with where its files are.

    Attributes:
        work: folder of the whole comparison.
        budget: name of one in `BUDGETS`.
        trial: which of the method's trials is tried; None: the chosen settings.
    """

    work: Path
    order: str
    method: Method
    seed: int
    budget: str
    trial: int | None = None

    @property
    def name(self) -> str:
        tried = "" if self.trial is None else f"-trial{self.trial}"
        return f"order{self.order}-{self.method.slug}-seed{self.seed}{tried}"

    @property
    def place(self) -> Path:
        """Of the run's own hub; one that is there goes on."""
        return self.work / "hubs" / self.name

    @property
    def source(self) -> Path:
        """Of the hub that `ours` leaves, for what is made of it. That of another order of the same tasks and seed will
        do: its adapters are the same."""
        kin = [order for order, tasks in ORDERS.items() if sorted(tasks) == sorted(self.tasks)]
        orders = [self.order, *(order for order in kin if order != self.order)]
        places = [self.work / "hubs" / f"order{order}-{OURS.slug}-seed{self.seed}" for order in orders]
        return next((place for place in places if self._finished(place)), places[0])

    def _finished(self, place: Path) -> bool:
        return (place / f"stage-{len(self.tasks)}.json").exists()

    @property
    def data(self) -> Path:
        """Of the rows (`write_data`)."""
        return self.work / ("data-long" if self.order in LONG else "data-short")

    @property
    def result(self) -> Path:
        return self.work / "results" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.work / "logs" / f"{self.name}.log"

    @property
    def tasks(self) -> tuple[str, ...]:
        return ORDERS[self.order]

    @property
    def done(self) -> bool:
        return self.result.exists()

    @property
    def further(self) -> bool:
        """Whether its order has a run with a seed of its own beside this one."""
        return self.seed != (SHORT.index(self.order) if self.order in SHORT else 0)

    @property
    def ready(self) -> bool:
        """Whether what it is made of is there."""
        return not self.method.from_ours or self._finished(self.source)

    @property
    def words(self) -> list[str]:
        """The command line that runs it."""
        found = ["one", "--work", str(self.work), "--order", self.order, "--method", self.method.name]
        found += ["--seed", str(self.seed), "--budget", self.budget]
        return found if self.trial is None else [*found, "--trial", str(self.trial)]


def budget_of(order: str) -> str:
    """Name of an order's budget."""
    return "short" if order in SHORT else "long"


def jobs_of(work: Path, orders: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Job]:
    """All runs, the telling ones first: every method once in each order, each order of four with another seed."""
    wanted = [method for method in METHODS if not methods or method.name in methods]
    rounds = [[(o, (k + turn) % 3) for k, o in enumerate(SHORT)] for turn in range(3)]
    places = [*rounds[0], ("4", 0), ("5", 0), ("6", 0), *rounds[1], *rounds[2], ("4", 1), ("4", 2)]
    for order, seed in places:
        for method in wanted:
            dear = order in LONG[1:] or (order in LONG and seed > 0)
            few = dear and not methods and method.name not in EVERYWHERE
            if order in orders and seed in seeds and not few and _telling(method, order, seed):
                yield Job(work, order, method, seed, budget_of(order))


def _telling(method: Method, order: str, seed: int) -> bool:
    """Whether a run is one of its own, or would only repeat another."""
    if method.name in LONG_ONLY and order in SHORT:
        return False
    if method.name == "zero-shot" and seed:
        return False
    return method.name not in ONCE or order in (SHORT[seed % 3], "4")
