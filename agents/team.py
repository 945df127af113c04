"""Several agents in one session, of the user's choice."""

from app.agent import Team


class OpenTeam(Team):
    """Several agents of your choice answer in one session, and one another: by @mention, in turn, or as a moderator picks them."""

    id = "team"
