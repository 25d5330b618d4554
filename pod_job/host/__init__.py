"""One process of the job: rendezvous, watchdog, stop requests, status, timeline."""
