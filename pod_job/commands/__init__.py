"""The three commands of the extraction document, each a thin front of the job."""
