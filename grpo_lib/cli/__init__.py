"""The commands: set-up, runs in a folder, pages for a projector."""
