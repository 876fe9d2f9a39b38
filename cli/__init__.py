"""The command `cl-adapter`: each verb parses, calls one method of `adapterhub_cl.AdapterHub`, prints."""
