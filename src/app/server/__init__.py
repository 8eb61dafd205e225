"""The HTTP server: processes, connections and the drain at the end. Only the command line imports it."""
