"""The job that runs on every host of a TPU pod: language-model activations from prompts to one finished dataset."""

__version__ = "0.2.0"
