"""What the demo's models are trained and judged on: drawings, jitter and prompts."""
