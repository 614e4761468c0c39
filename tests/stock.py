"The stock engine without what it does again and again: for tests that play many games in it."
import importlib
from functools import lru_cache

ROOMS = 'textworld.logic', 'textworld.envs.pddl.textgen'


def shallow(context):
    "`copy_context` of the stock engine without copies of the things that are named in it: nothing changes those."
    return context | {k: dict(context[k]) for k in ('variables', 'mapping')}


def less_of_the_same(patch):
    """At every start the stock engine translates its game again, at every step it parses the same pieces of its grammar and copies all that they
    are about: most of its time. With this `MonkeyPatch` it keeps what it has translated and read, and the copies are shallow; all that it does with
    that it does anew. Returns a function that undoes it."""
    parsers, textgen, down = [importlib.import_module(name) for name in ROOMS], importlib.import_module(ROOMS[1]), importlib.import_module('fast_downward')
    plain = [*((room._PARSER, 'parse', room._PARSER.parse) for room in parsers), (textgen, 'copy_context', textgen.copy_context), (down, 'pddl2sas', down.pddl2sas)]
    for room in parsers: patch.setattr(room._PARSER, 'parse', lru_cache(4096)(room._PARSER.parse))
    patch.setattr(textgen, 'copy_context', shallow)
    patch.setattr(down, 'pddl2sas', lru_cache(2)(down.pddl2sas)) # two translations of a game: to play, and to plan
    def undo(patch):
        for what in plain: patch.setattr(*what)
    return undo
