"""What a test bench is made of: the suite that describes it, scorers, statistics, and the report. It knows no database."""
