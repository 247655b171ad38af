"""Captions for Atari clips: the game and what the held action makes its hero do, through several templates."""

ACTIONS = ("NOOP", "FIRE", "UP", "DOWN", "LEFT", "RIGHT")

_TITLES = {
    "ms_pacman": "Ms. Pac-Man",
    "riverraid": "River Raid",
    "qbert": "Q*bert",
    "hero": "H.E.R.O.",
    "jamesbond": "James Bond",
    "mr_do": "Mr. Do!",
    "montezuma_revenge": "Montezuma's Revenge",
    "yars_revenge": "Yars' Revenge",
    "up_n_down": "Up 'n Down",
    "et": "E.T.",
}

_HEROES = {
    "beam_rider": "ship",
    "boxing": "boxer",
    "breakout": "paddle",
    "enduro": "car",
    "fishing_derby": "angler",
    "freeway": "chicken",
    "ice_hockey": "player",
    "kung_fu_master": "fighter",
    "pong": "paddle",
    "riverraid": "plane",
    "road_runner": "bird",
    "seaquest": "submarine",
    "space_invaders": "cannon",
}

_VERBS = {
    "NOOP": ("waits", "waiting"),
    "FIRE": ("fires", "firing"),
    "UP": ("moves up", "moving up"),
    "DOWN": ("moves down", "moving down"),
    "LEFT": ("moves left", "moving left"),
    "RIGHT": ("moves right", "moving right"),
}

# What a push of the button or lever means where the usual word would be wrong.
_GAME_VERBS = {
    ("boxing", "FIRE"): ("punches", "punching"),
    ("breakout", "FIRE"): ("serves the ball", "serving the ball"),
    ("enduro", "FIRE"): ("speeds up", "speeding up"),
    ("enduro", "DOWN"): ("brakes", "braking"),
    ("fishing_derby", "FIRE"): ("reels in the line", "reeling in the line"),
    ("riverraid", "UP"): ("speeds up", "speeding up"),
    ("riverraid", "DOWN"): ("slows down", "slowing down"),
    ("road_runner", "FIRE"): ("jumps", "jumping"),
}


def title(game: str) -> str:
    """The name people know a game by: "ms_pacman" -> "Ms. Pac-Man"."""
    return _TITLES.get(game, game.replace("_", " ").title())


def captions(game: str, action: str) -> list[str]:
    """Captions of a clip in which `action` (one of ACTIONS) is held throughout; the last names the game alone."""
    verb, gerund = _GAME_VERBS.get((game, action), _VERBS[action])
    name, hero = title(game), _HEROES.get(game, "player")
    return [
        f"a game of {name}, the {hero} {verb}",
        f"{name} on the Atari 2600, the {hero} {verb}",
        f"the {hero} {verb} in {name}",
        f"{name}: the {hero} is {gerund}",
        f"a video of {name} with the {hero} {gerund}",
        f"a game of {name}",
    ]
