"""Reward hacking as a run's own log shows it: detectors, how well they name where gold falls, and the watch."""
