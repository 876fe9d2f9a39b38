"""Travelling: versions that move to another hub and back, through a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub_cl.errors import UsageError
from adapterhub_cl.facade.opened import OpenedHub
from adapterhub_cl.progress import Reporter, usual

if TYPE_CHECKING:
    from adapterhub_cl.sharing import MovedVersion


class Travelling(OpenedHub):
    """The verbs push and pull."""

    def push(
        self,
        target: str,
        refs: str | Sequence[str] = (),
        *,
        every: bool = False,
        with_samples: bool = False,
        reporter: Reporter | None = None,
    ) -> list[MovedVersion]:
        """Send versions to a store, from where another hub pulls them. Only what the store lacks is sent, and each
        version is signed with your key, which the first push makes.

        Args:
            target: a folder, or a URL that fsspec opens, such as `s3://bucket/prefix`.
            refs: versions such as `news@v2`, or names for all versions of an adapter.
            every: instead of `refs`: the whole hub.
            with_samples: send replay samples too.

        Raises:
            UnknownNameError: no such version.
            AdapterError: the store has other content under the same name and number.
            IntegrityError: a version here, or its document in the store, is damaged.
            StorageError: the store cannot be reached or written; the same call continues.
        """
        from adapterhub_cl.sharing import push

        named = [refs] if isinstance(refs, str) else list(refs)
        if bool(named) == every:
            raise UsageError(
                "push versions, or everything: say which",
                "cl-adapter push NAME TARGET, or cl-adapter push --all TARGET",
            )
        return push(self.registry, str(target), named, with_samples=with_samples, reporter=usual(reporter))

    def pull(
        self,
        target: str,
        ref: str | None = None,
        *,
        name: str | None = None,
        trust: str | Sequence[str] = (),
        with_samples: bool = False,
        reporter: Reporter | None = None,
    ) -> list[MovedVersion]:
        """Bring versions from a store into this hub, under the same names and numbers, with lineage, task, scores and
        the gate's decision. All are checked before the first is published; what is here already is skipped.

        The first pull from a store accepts its signer for this hub. What was made in this hub keeps answering; a pulled
        version takes over only from an earlier pulled version of the same adapter.

        Args:
            target: as for `push`.
            ref: a version such as `news@v2`, or a name for all versions of an adapter; None for everything.
            name: the adapter's name here, for a single version.
            trust: fingerprints of further signers to accept.
            with_samples: bring replay samples too.

        Raises:
            UnknownNameError: the store has no such version.
            AdapterError: a version is of another base, or its name and number are taken, or its task differs here.
            IntegrityError: something was changed, is damaged, or another key signed it.
            StorageError: the store cannot be read, or the disk cannot be written; the same call continues.
        """
        from adapterhub_cl.sharing import pull

        accepted = [trust] if isinstance(trust, str) else list(trust)
        return pull(
            self.registry,
            str(target),
            ref,
            name=name,
            trust=accepted,
            with_samples=with_samples,
            reporter=usual(reporter),
        )
