"""Speed of the cascade: teacher, few steps at one size and RMD, timed through the one cascade engine."""
