"""What every stage uses: reading and writing files without losing anything, and the device and its precision."""
