"""The teacher, asked once: its targets captured, written, read and verified."""
