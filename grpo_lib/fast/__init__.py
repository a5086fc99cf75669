"""The same numbers sooner: packed rows and a decoder. Policies do not know it."""
