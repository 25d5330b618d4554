"""The three commands of the extraction document, with its flags."""
