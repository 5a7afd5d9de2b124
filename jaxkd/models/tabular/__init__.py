"""Networks for rows of tables, and for interactions of users with items."""
