"""What an answer must look like: from a client's words to the one form that workers take."""
