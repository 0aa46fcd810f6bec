"""The known mistakes, and the kernel that makes them."""
