"""Configuration: frozen dataclasses, importable without torch."""
