"""Moving versions between hubs through a store: a folder, a bucket, anything that fsspec opens.

In the store, files are named by their SHA-256 (`blobs/ab/abcd…`), and each version has one signed document
(`versions/NAME/vN.json`) that lists them. The document is written last, so a version is there completely or not at all.
"""

from adapterhub_cl.sharing.pulling import pull
from adapterhub_cl.sharing.pushing import push
from adapterhub_cl.sharing.shared_version import MovedVersion

__all__ = ["MovedVersion", "pull", "push"]
