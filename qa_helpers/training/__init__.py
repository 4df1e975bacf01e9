"""Fine-tuning: what a model is taught, and the loop that teaches it."""
