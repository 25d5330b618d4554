"""Other programs' formats: pickle files, SAELens."""
