"""The exit codes of all jobs."""

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_CONFIG = 2  # bad configuration, or no readable input at all
EXIT_LOSSES = 3  # finished, with more failed or rejected than the options allow
EXIT_INTERRUPTED = 4  # by SIGTERM or SIGINT, resumable
EXIT_STOPPED = 5  # stopped early as hopeless, resumable
