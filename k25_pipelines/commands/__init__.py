"""What `k25` can do, one topic a file: `add_commands` names the words, a function of each does the work."""
