"""What a reader sees: the header, failures, tables, scripts that show a failure again."""
