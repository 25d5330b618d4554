"""How a finished run is read: rows by index, epochs in shuffled blocks, pickle files of strangers."""
