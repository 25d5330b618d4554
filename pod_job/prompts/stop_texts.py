"""Check of `generate.stop`: texts that a completion's text can have."""

from collections.abc import Sequence

from pod_job.errors import JobError
from pod_job.prompts.tokenizer import Tokenizer


def check_stop_texts(stop: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raises JobError for a text that no completion contains, so that every one would run to its last token.

    Completions are decoded without special tokens; a text must come back from its own tokens, between others.
    """
    for text in stop:
        ids = tokenizer(f"x{text}x", add_special_tokens=False)["input_ids"]
        if text in tokenizer.decode(ids, skip_special_tokens=True):
            continue
        if text in tokenizer.decode(ids, skip_special_tokens=False):
            rule = "has a special token, and completions are decoded without those; end tokens end one anyway"
        else:
            rule = "is a text that the model's tokenizer cannot write"
        raise JobError(f"generate.stop: {text!r} can never occur: it {rule}; leave it out")
