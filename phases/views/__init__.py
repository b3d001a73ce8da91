"""What is seen of generations: reports, rows and profiles."""
