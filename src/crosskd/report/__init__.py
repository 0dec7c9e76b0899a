"""Results to read: tables, and one self-contained HTML page."""
