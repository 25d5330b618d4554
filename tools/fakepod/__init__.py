"""Cloud TPU on this machine: enough of its API for the real gcloud, one real sshd per worker, a metadata server each.

`with fakepod(root) as pod:` yields a `World`; processes that get `pod.env` find it in place of Google's cloud.
Everything listens on addresses of 127.0.0.0/8 and ends with the context.
"""

from tools.fakepod.world import World, fakepod, fakepod_available

__all__ = ["World", "fakepod", "fakepod_available"]
