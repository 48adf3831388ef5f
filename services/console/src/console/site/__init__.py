"""The web site around the views: its server, its guard against foreign pages, viewers and their sessions."""
