"""The registry: names, versions, aliases, lineage and scores of one hub's adapters. Does not import torch."""

from adapterhub_cl.registry.drafts import Draft
from adapterhub_cl.registry.files import storage_errors
from adapterhub_cl.registry.hubfile import HubFile
from adapterhub_cl.registry.names import Ref, check_alias, check_local, check_name, check_new, parse_ref
from adapterhub_cl.registry.queries import AliasMove, Event, StoredEvaluation
from adapterhub_cl.registry.registry import Registry
from adapterhub_cl.registry.usage import Counted, Usage

__all__ = [
    "AliasMove",
    "Counted",
    "Draft",
    "Event",
    "HubFile",
    "Ref",
    "Registry",
    "StoredEvaluation",
    "Usage",
    "check_alias",
    "check_local",
    "check_name",
    "check_new",
    "parse_ref",
    "storage_errors",
]
