"""Folders on a disk and in a bucket, with create-only writes and checksums."""
