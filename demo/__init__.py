"""A small real world to try RMD in: drawings, prompts, an autoencoder, a teacher and a judge."""
