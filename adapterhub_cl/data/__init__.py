"""From a data source to examples and prompts: reading, columns, tasks, prompt formats. Does not import torch."""
