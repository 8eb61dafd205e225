"""The HTTP server: processes, connections and shutdown. Only the command line imports it."""
