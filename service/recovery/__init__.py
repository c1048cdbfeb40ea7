"""Links in mails: reset a password; verify, change or restore an email."""
