"""One process of the job: its chips, rendezvous, reports, stop requests, watchdog and end."""
