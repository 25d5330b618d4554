"""Command line of each verb on a run folder."""
