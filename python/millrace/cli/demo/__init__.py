"""`millrace demo`: the log at work on a real directory, killed in the middle, nothing lost."""
