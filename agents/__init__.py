"""mallocMuZero: the agent that learns the game."""
