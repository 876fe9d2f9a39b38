"""`tune`: training settings of a task, searched on rows held out. One file for each step."""
