"""The imports of the package, drawn in words: rooms, arrows, floors, circles, and which names go from wing to wing.

    python tests/house.py [CHECKOUT]

An arrow is a name: room A uses what room B defines, wherever the import stands and by whatever star it comes. CHECKOUT is another
revision's folder, e.g. `git worktree add ../before REVISION`; a flat package of an older one is one wing."""
import ast, json, re, sys
from collections import defaultdict
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def defined(tree):
    "Names that a module's statements define, imports left out."
    def names(target):
        if isinstance(target, ast.Name): yield target.id
        for part in getattr(target, 'elts', ()): yield from names(part)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        for target in getattr(node, 'targets', [node.target] if isinstance(node, ast.AnnAssign) else ()): yield from names(target)


def used(tree):
    "Names that code uses, those of quoted annotations included."
    for node in ast.walk(tree):
        if isinstance(node, ast.Name): yield node.id
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier(): yield node.value


class House:
    "A checkout's rooms and the names that go between them."
    def __init__(self, root):
        self.root = Path(root)
        self.rooms = {} # module -> its notebook, e.g. 'games.engine' -> '03_games/02_engine'; in the order of the paths
        for path in sorted((self.root/'nbs').rglob('*.ipynb')):
            first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
            if name := re.match(r'#\| default_exp ([\w.]+)', first): self.rooms[name[1]] = path.relative_to(self.root/'nbs').with_suffix('').as_posix()
        self.text = {m: (self.root/'interlat'/f"{m.replace('.', '/')}.py").read_text(encoding='utf-8') for m in self.rooms}
        self.tree = {m: ast.parse(t) for m, t in self.text.items()}
        self.own = {m: set(defined(t)) - {'__all__', '_all_'} for m, t in self.tree.items()}

    def public(self, module):
        "What a star import of the module brings."
        for node in self.tree[module].body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__': return set(ast.literal_eval(node.value))
        return set()

    def imports(self, module):
        "(room, its names that are asked for, whether by a star) for each import of an own room, those inside functions too."
        here = module.split('.')[:-1]
        for node in ast.walk(self.tree[module]):
            if not isinstance(node, ast.ImportFrom) or not node.module: continue
            if node.level: name = '.'.join([*here[:len(here) - node.level + 1], node.module])
            elif node.module.startswith('interlat.'): name = node.module.removeprefix('interlat.')
            else: continue
            star = node.names[0].name == '*'
            yield name, self.public(name) if star else {a.name for a in node.names}, star

    def home(self, module, name):
        "The room that defines what `name` of a module is."
        if name in self.own[module]: return module
        return next((self.home(room, name) for room, names, _ in self.imports(module) if name in names), module)

    @cached_property
    def arrows(self): # (room, room) -> names that the first uses of the second
        found = defaultdict(set)
        for module, tree in self.tree.items():
            words = set(used(tree)) - self.own[module]
            for room, names, star in self.imports(module):
                for name in names & words if star else names: found[module, self.home(room, name)].add(name)
        return {pair: names for pair, names in found.items() if pair[0] != pair[1]}

    def idle_stars(self):
        "Star imports that bring no name that is used, but for those of a door, which hands names on."
        doors = {m for m, t in self.text.items() if re.search(r'^_all_ = ', t, re.M)}
        words = {m: set(used(t)) - self.own[m] for m, t in self.tree.items() if m not in doors}
        return sorted((m, room) for m in words for room, names, star in self.imports(m) if star and not names & words[m])

    def twins(self):
        "Names that a room uses and that two of its star imports bring, from different rooms: which one is meant hangs on their order."
        found = defaultdict(set)
        for m, tree in self.tree.items():
            words = set(used(tree)) - self.own[m]
            for room, names, star in self.imports(m):
                for name in names & words if star else (): found[m, name].add(self.home(room, name))
        return sorted(key for key, homes in found.items() if len(homes) > 1)

    def upward(self): return sorted(pair for pair in self.arrows if self.rooms[pair[0]] <= self.rooms[pair[1]])

    def floors(self):
        "How many rooms stand one above the other in the longest chain of arrows; raises `CycleError` for a circle."
        below = defaultdict(set)
        for a, b in self.arrows: below[a].add(b)
        height = {}
        for room in TopologicalSorter({m: below[m] for m in self.rooms}).static_order():
            height[room] = 1 + max((height[b] for b in below[room]), default=0)
        return max(height.values())

    def wing(self, module): return self.rooms[module].rpartition('/')[0] or '(flat)'

    def __str__(self):
        try: floors = f'{self.floors()} floors, no circle'
        except CycleError as e: floors = f"a circle: {' -> '.join(e.args[1])}"
        wings = list(dict.fromkeys(map(self.wing, self.rooms)))
        lines = [f'{len(self.rooms)} rooms in {len(wings)} wings, {len(self.arrows)} arrows, {floors}, {len(self.upward())} arrows upward, '
                 f'{len(self.idle_stars())} stars that bring nothing, {len(self.twins())} names that two stars bring']
        between = defaultdict(set)
        for (a, b), names in self.arrows.items():
            if self.wing(a) != self.wing(b): between[self.wing(a), self.wing(b)] |= {(b, n) for n in names}
        for wing in wings:
            inside = [m for m in self.rooms if self.wing(m) == wing]
            down = ', '.join(f'{b} {len(names)}' for (a, b), names in sorted(between.items()) if a == wing)
            lines.append(f'{wing:>15}  {len(inside):>2} rooms, {sum(len(self.text[m].splitlines()) for m in inside):>5} lines; names from: {down or "nowhere"}')
        return '\n'.join(lines)


if __name__ == '__main__': print(House(*sys.argv[1:] or [Path(__file__).resolve().parents[1]]))
