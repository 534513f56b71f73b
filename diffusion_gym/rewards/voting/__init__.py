"""What is behind the reward ``votes``: questions, the file of votes, and the page that asks."""
