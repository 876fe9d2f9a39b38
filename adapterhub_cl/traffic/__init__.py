"""What production asked, what was answered, and what users said of it. No torch."""
