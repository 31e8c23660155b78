"""The site's own web page: what is asked, what left this building, the policy in words, and what staff must know.

Loopback only, for who has the token that `fedtwin site page` prints. It reads the site's record and decides by the
same functions as the command line. It fetches nothing from anywhere and needs no JavaScript.
"""
