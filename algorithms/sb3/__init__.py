"""Stable-Baselines3's side: environments as it sees them, what its callbacks read, schedules, and its PPO."""
