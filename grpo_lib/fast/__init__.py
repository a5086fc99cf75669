"""The same numbers sooner: packed rows and a decoder. ``rollout`` chooses; policies do not know."""
