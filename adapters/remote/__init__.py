"""An implementation in a process of its own: the protocol, the peer that speaks it in Python, and the adapter that asks a peer."""
