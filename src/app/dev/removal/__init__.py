"""`make remove`: deletes a feature with everything that belongs to it, in the code, in the tests and in the local database."""
