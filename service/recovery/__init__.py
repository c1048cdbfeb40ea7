"""Links in mails: a forgotten password, an address to verify, to change or to give back."""
