"""References to versions in a store: `hf://owner/repo/news@v2` is pulled, and is then the hub's own `news@v2`."""

from __future__ import annotations

from adapterhub_cl.errors import UsageError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, parse_ref
from adapterhub_cl.registry.remote_store import RemoteStore
from adapterhub_cl.sharing.pulling import pull


def bring(registry: Registry, ref: str, reporter: Reporter | None = None) -> str:
    """Pull the version that a reference names, unless it is here already; a name alone is its newest version there.

    Args:
        ref: `STORE/NAME@vN` or `STORE/NAME`, the store as `pull` takes it.

    Returns:
        the reference here.

    Raises:
        UsageError: the reference names no version of a store.
        AdapterHubError: see `pull`.
    """
    target, _, named = ref.rpartition("/")
    if target.endswith(("/", ":")):
        raise UsageError(f"{ref!r} names no version of a store", "write hf://owner/repo/news@v2 or s3://bucket/news@v2")
    wanted = parse_ref(named)
    if wanted.alias is not None:
        raise UsageError(
            f"a store has no aliases such as {wanted.alias!r}", f"name a version: {target}/{wanted.name}@v1"
        )
    if wanted.version is None:
        numbers = RemoteStore(target).listed().get(wanted.name, [])
        named = f"{wanted.name}@v{numbers[-1]}" if numbers else named
    (moved,) = pull(registry, target, named, reporter=reporter or Reporter())
    return moved.ref
