"""Start, capture, keep alive and end process trees. Knows no GPU and no plan."""
