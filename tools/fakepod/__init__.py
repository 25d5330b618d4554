"""Simulates Cloud TPU on this machine: its API as far as gcloud needs it, and an sshd and a metadata server per worker.

`with fakepod(root, host_env) as world:` yields a `World`; processes with the environment `world.env` use it in place of
Google's cloud. All servers listen on addresses of 127.0.0.0/8 and end with the context.
"""

from tools.fakepod.world import World, fakepod, fakepod_available

__all__ = ["World", "fakepod", "fakepod_available"]
