"""The loop with production: what has gathered, what users said, and what is learned from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub_cl.facade.using import Using
from adapterhub_cl.launching import one_process
from adapterhub_cl.loop.learn_options import LearnOptions
from adapterhub_cl.options import from_mapping, given_of, takes
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.showing import Listing

if TYPE_CHECKING:
    from adapterhub_cl.loop.inbox import Inbox
    from adapterhub_cl.loop.learn_steps import LearnStep
    from adapterhub_cl.traffic.journal import Journal


class Looping(Using):
    """The verbs that learn from production."""

    @property
    def traffic(self) -> Journal:
        """The answers that `serve --log` kept, and what users said of them."""
        from adapterhub_cl.traffic.journal import Journal

        return Journal(self.folder)

    def inbox(self, task: str = "", *, limit: int = 10, groups: bool = True, reporter: Reporter | None = None) -> Inbox:
        """What has gathered for each task: corrections, answers worth labelling, and groups of inputs that no task
        knows, with the proposal of a new task.

        Args:
            task: only this one.
            limit: rows that are listed of each sort.
            groups: look for groups, where at least 20 answers were given by no task; loads the base.

        Raises:
            UnknownNameError: no such task, and nothing was said of one.
        """
        from adapterhub_cl.loop.inbox import check_known, inbox_of

        check_known(self.registry, self.traffic, task)
        can = groups and bool(self.registry.serving())

        def drift(texts: Sequence[str]) -> Any:
            return self.drift(texts, reporter=reporter)

        return inbox_of(self.registry, self.traffic, task, limit, drift if can else None)

    def say(
        self,
        answer_id: str,
        *,
        label: str | None = None,
        answer: str | None = None,
        correct: bool | None = None,
        thumb: str | None = None,
        task: str = "",
        by: str = "",
    ) -> None:
        """Say what was right or wrong with an answer that `serve --log` kept: one of `label`, `answer`, `correct` and
        `thumb`. Said again, it replaces what was said.

        Args:
            answer_id: as the response had it.
            label: the right label; `answer`: the right text.
            thumb: `up` or `down`.
            task: that the question belongs to, if that is another one than the one that answered.
            by: who says it.

        Raises:
            UnknownNameError: no such answer, or no such label.
            UsageError: what was said cannot be used.
        """
        from adapterhub_cl.traffic.saying import said_of

        journal = self.traffic
        told = {"label": label, "answer": answer, "correct": correct, "thumb": thumb, "task": task}
        journal.say(said_of(self.registry, journal.get(answer_id), told, by))

    def withdraw(self, *answer_ids: str) -> list[str]:
        """Take back what was said of answers: of all of them, or of none.

        Returns:
            the ids that a lesson has taken already; what it has learned stays.

        Raises:
            UnknownNameError: no such answer is kept.
            UsageError: nothing was said of one.
        """
        return self.traffic.withdraw(*answer_ids)

    @takes(LearnOptions, TrainingSettings)
    def learn(self, *, dry_run: bool = False, reporter: Reporter | None = None, **asked: Any) -> list[LearnStep]:
        """Take the next step with what has gathered: learn it through the gate, let the new version answer a share of
        the conversations, and promote it or roll it back by what users say of its answers. Call it again and again.

        Args:
            dry_run: only say what would be done.

        Returns:
            for each task what was done, and why.

        Raises:
            LearnsElsewhere: another process is at it.
            StorageError: the disk refuses; the same call goes on.
        """
        one_process("learn")
        from adapterhub_cl.loop.learn_call import learn

        options = from_mapping(LearnOptions, given_of(LearnOptions, asked), "learn")
        return Listing(learn(self.context(reporter), options, given_of(TrainingSettings, asked), dry_run=dry_run))
