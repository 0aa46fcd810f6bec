"""The implementation under test, on one device: met, asked, solved and judged."""
