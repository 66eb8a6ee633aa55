"""The rules: memory maps, their validator and simulator, and the game that makes them."""
