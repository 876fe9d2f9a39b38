"""`push` and `pull`: versions that move between hubs through a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from cl_adapter import display
from cl_adapter.app import MOVE, verb
from cl_adapter.completion import versions
from cl_adapter.session import Session

from adapterhub_cl.errors import UsageError

if TYPE_CHECKING:
    from adapterhub_cl.sharing import MovedVersion


@verb(MOVE, "cl-adapter push news@v2 s3://our-bucket/adapters")
def push(
    ctx: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="REF… TARGET",
            help="versions such as news@v2, or names for all versions of an adapter; and last the target: a folder, or "
            "a URL such as s3://bucket/prefix",
            autocompletion=versions,
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="instead of versions: the whole hub")] = False,
    with_samples: Annotated[bool, typer.Option("--with-samples", help="send replay samples too")] = False,
) -> None:
    """Send versions to a store, signed; only what is missing there is sent."""
    session = Session.of(ctx)
    *refs, target = words
    if not refs and not every:
        raise UsageError(
            "push needs what to push, and the target", "cl-adapter push NAME TARGET, or cl-adapter push --all TARGET"
        )
    _show(
        session,
        session.hub().push(target, refs, every=every, with_samples=with_samples, reporter=session.reporter()),
        target,
        "pushed",
    )


@verb(MOVE, "cl-adapter pull s3://our-bucket/adapters news@v2")
def pull(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="what was pushed to: a folder, or a URL such as s3://bucket/prefix")],
    ref: Annotated[
        str | None,
        typer.Argument(help="a version such as news@v2, or a name for all its versions; default: everything"),
    ] = None,
    name: Annotated[str | None, typer.Option("--as", help="the adapter's name here, for a single version")] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="FINGERPRINT", help="accept this signer too; may be repeated")
    ] = None,
    with_samples: Annotated[bool, typer.Option("--with-samples", help="bring replay samples too")] = False,
) -> None:
    """Bring versions from a store into the hub: hashes and signatures are checked first."""
    session = Session.of(ctx)
    hub = session.hub(write=True)
    moved = hub.pull(target, ref, name=name, trust=trust or (), with_samples=with_samples, reporter=session.reporter())
    _show(session, moved, target, "pulled")


def _show(session: Session, moved: Sequence[MovedVersion], target: str, done: str) -> None:
    if session.json:
        session.give([one.to_json() for one in moved])
        return
    for one in moved:
        what = f"{done}, {display.size(one.bytes)}" if one.moved else "was there already"
        print(display.one_line(f"{one.ref}  {what}"))
    if done == "pushed" and moved:
        session.note(f"next: in another hub, cl-adapter pull {display.one_line(target)} {moved[-1].ref}")
