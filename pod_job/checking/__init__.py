"""Checks of the vectors: the parity gate, the independent reference, rows computed again, whole runs verified."""
