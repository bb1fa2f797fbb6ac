"""What a command that asks a running system needs: a connection, options, pictures, words for what goes wrong."""
