"""Evidence becomes a verdict. Pure: reads no file, no clock and no GPU."""
