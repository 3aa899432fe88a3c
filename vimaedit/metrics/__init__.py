"""How good an edit is: measures of pictures, some against a prompt or a mask."""
