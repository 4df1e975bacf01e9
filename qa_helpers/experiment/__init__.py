"""An experiment: described, run once, recorded, read back; and the course's own."""
