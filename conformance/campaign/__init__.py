"""Many implementations, each in an environment of its own, judged side by side: `attnspec campaign FILE`."""
