"""Is it right: the parity gate, the independent reference, rows computed again."""
