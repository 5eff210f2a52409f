"""What is to be run: plans and catalogs, valid or refused with every mistake named."""
