"""Games for any agent library that speaks Gymnasium. Importing this package registers them.

========================  ==========================================================
``fwrnn/Catch-v0``        partially observable Catch; arguments ``size``, ``visible_frames``
``fwrnn/CatchN16M3-v0``   the paper's smaller game: a screen of 16×16, three frames of it shown
``fwrnn/CatchN24M5-v0``   the paper's larger game: 24×24, five frames shown
========================  ==========================================================

Example::

    import gymnasium
    import fwrnn.environments

    game = gymnasium.make("fwrnn/CatchN16M3-v0", render_mode="ansi")
    thousands = gymnasium.make_vec("fwrnn/Catch-v0", num_envs=4096, size=16, visible_frames=3)
"""

import gymnasium

from fwrnn.environments.catch import Catch, CatchVectorEnv

__all__ = ["Catch", "CatchVectorEnv"]

_VARIANTS = {
    "fwrnn/Catch-v0": {},
    "fwrnn/CatchN16M3-v0": {"size": 16, "visible_frames": 3},
    "fwrnn/CatchN24M5-v0": {"size": 24, "visible_frames": 5},
}

for name, settings in _VARIANTS.items():
    gymnasium.register(
        name,
        entry_point="fwrnn.environments.catch:Catch",
        vector_entry_point="fwrnn.environments.catch:CatchVectorEnv",
        kwargs=settings,
    )
