"""What is seen: charts, diagrams, counts and traces of machines and of recorded runs."""
