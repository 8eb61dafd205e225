"""What pages in browsers may do: requests from other origins, and cookies."""
