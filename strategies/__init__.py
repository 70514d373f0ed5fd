"""The server's side: how updates become the next model, and the loop around it."""
