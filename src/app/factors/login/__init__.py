"""The second leg of a login: the password was right, and the client gives a second factor."""
