"""Foreign weights into our variables: files, names, surgery."""
