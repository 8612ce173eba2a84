"""What a user can put right about where a job runs; everything else is a bug or a broken machine."""

TOKEN_HELP = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file, to the token that the cluster was started with"


class ClusterError(Exception):
    """The address, the token or what was to be sent is wrong; the first line of the message says what to do.

    Exit code 2: nothing was submitted or run.
    """
