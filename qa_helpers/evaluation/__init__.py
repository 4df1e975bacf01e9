"""What a model answers, what the answers are worth, and how far the figure can be trusted."""
