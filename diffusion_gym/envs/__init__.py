"""The denoising MDP: one batched torch implementation, and the single environment as a batch of one."""
