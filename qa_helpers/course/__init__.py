"""What a notebook needs to be one: its first cell, its checks, and how it is run and compared."""
