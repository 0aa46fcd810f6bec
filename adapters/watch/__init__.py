"""What a call did besides answering."""
