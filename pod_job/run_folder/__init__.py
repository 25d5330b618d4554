"""Files in a run folder and the records that they hold: names, identity, tap files, commit records, metadata.json."""
