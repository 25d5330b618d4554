"""File formats: tensors, row tables, checksummed JSON, quantized values, statistics."""
