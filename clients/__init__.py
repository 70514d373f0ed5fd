"""The Flower ClientApp and who it runs as; nothing here decides what is private, it only carries it out."""
