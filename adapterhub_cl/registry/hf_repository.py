"""What a store on the Hugging Face Hub needs beside fsspec: a repository, made at the first push, and files that only
one of several writers can create."""

from __future__ import annotations

from typing import Any

from adapterhub_cl.errors import StorageError, UsageError

PROTOCOL = "hf"
TRIES = 10  # of a commit, while other commits come in between


def check_address(root: str) -> None:
    """Raise UsageError unless `root` names a repository or a folder in one: `owner/name`, `datasets/owner/name/x`."""
    from huggingface_hub import parse_hf_uri

    try:
        named = parse_hf_uri(f"hf://{root}")
    except ValueError as error:
        raise UsageError(
            f"hf://{root} names no repository", "write hf://owner/name or hf://owner/name/folder"
        ) from error
    if named.type == "bucket":
        raise UsageError(f"hf://{root} is a bucket", "name a repository: hf://owner/name")


def make_repository(fs: Any, root: str) -> None:
    """Make the repository if there is none, private; its owner can publish it.

    Args:
        fs: a `huggingface_hub.HfFileSystem`.
        root: `owner/name`, perhaps with a folder in it.
    """
    try:
        fs.resolve_path(root)
    except FileNotFoundError:
        from huggingface_hub import parse_hf_uri

        named = parse_hf_uri(f"hf://{root}")
        fs._api.create_repo(named.id, repo_type=named.type, private=True, exist_ok=True)
        fs._repo_and_revision_exists_cache.clear()
        fs.invalidate_cache()


def create_file(fs: Any, place: str, content: bytes) -> None:
    """Add a file in a commit that is refused if anything was committed since the look whether the file is there.

    Raises:
        FileExistsError: it is there.
        StorageError: others commit all the time.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    where = fs.resolve_path(place)
    for _ in range(TRIES):
        head = fs._api.repo_info(where.repo_id, repo_type=where.repo_type, revision=where.revision).sha
        if fs._api.file_exists(where.repo_id, where.path_in_repo, repo_type=where.repo_type, revision=head):
            raise FileExistsError(place)
        try:
            fs._api.create_commit(
                where.repo_id,
                [CommitOperationAdd(where.path_in_repo, content)],
                commit_message=f"Add {where.path_in_repo}",
                repo_type=where.repo_type,
                revision=where.revision,
                parent_commit=head,
            )
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in (409, 412):
                raise
        else:
            fs.invalidate_cache()
            return
    raise StorageError(f"hf://{where.repo_id} changes all the time", "run the same command again")
