"""Exit statuses of the commands."""

# A command line or a setting cannot be used.
UNUSABLE = 2
# Everything else that failed.
FAILED = 1
