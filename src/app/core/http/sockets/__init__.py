"""WebSockets: their handshakes, their limits, and how the server ends them."""
