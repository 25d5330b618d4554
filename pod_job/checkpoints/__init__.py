"""Weights on disk, in a bucket or on the hub, and their way into a sharded model."""
