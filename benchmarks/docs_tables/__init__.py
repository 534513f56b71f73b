"""Documentation tables and figures, written from committed results."""
