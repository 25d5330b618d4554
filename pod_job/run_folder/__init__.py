"""What lies in a run folder: names, the claim, tap files, row tables, statistics, commit records, metadata.json."""
