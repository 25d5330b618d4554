"""SAEs in the hands of SAELens and dictionary_learning: that they load ours, and measure what `evaluate` measures."""
