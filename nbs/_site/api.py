"The names of a module as a page: signature, docstring, and the comment of each parameter. Modules are read, not imported."
import ast, inspect, io, re, tokenize
from functools import cached_property
from pathlib import Path

from pages import fenced

FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


class Module:
    "A module of the package, as its source tells it."
    def __init__(self,
        name, # with its package, e.g. 'interlat.games.engine'
        path, # of its source
    ):
        self.name, self.source = name, Path(path).read_text(encoding='utf-8')
        self.tree = ast.parse(self.source)

    @cached_property
    def comments(self):
        "The comments by line."
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        return {t.start[0]: t.string.lstrip('# ').rstrip() for t in tokens if t.type == tokenize.COMMENT}

    @cached_property
    def defined(self):
        "What is defined at the top, by name."
        found = {}
        for node in self.tree.body:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)): found[node.name] = node
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {n.id: node for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        return found

    @cached_property
    def imported(self):
        "The ends of the names of the modules that it imports from."
        return {'.' + n.module for n in self.tree.body if isinstance(n, ast.ImportFrom) and n.module}

    @property
    def names(self):
        "The names that a star import brings."
        return ast.literal_eval(self.defined['__all__'].value) if '__all__' in self.defined else []


def prose(text):
    "Plain words with code between backticks, as Markdown that shows them so."
    code = re.split(r'(`[^`]+`)', text)
    return ''.join(part if part.startswith('`') and len(part) > 2 else re.sub(r'[\\*_\[\]<>$~`{]', r'\\\g<0>', part) for part in code)


def unparsed(node):
    "The source of a default or of a type; a type that is written as a text is shown without its quotes."
    return '' if node is None else ast.unparse(node)


def annotation(node): return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else unparsed(node)


class Parameter:
    "A parameter of a function, or a field of a dataclass."
    def __init__(self, name, type, default, about):
        self.name, self.type, self.default, self.about = name, annotation(type), unparsed(default), about

    def __str__(self):
        typed = f"{self.name}: {self.type}" if self.type else self.name
        return typed + (f" = {self.default}" if self.default else '')


def parameters(
    function, # its node
    comments, # line -> comment
):
    "The parameters in the order of the signature, `*` alone included; the one that a method is called on is left out."
    a = function.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults
    given = [('', x, d) for x, d in zip(plain, defaults)]
    if a.vararg: given.append(('*', a.vararg, None))
    elif a.kwonlyargs: given.append(('*', None, None))
    given += [('', x, d) for x, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: given.append(('**', a.kwarg, None))
    last = end_of_header(function)
    def comment(x, d):
        line = (d or x).end_lineno
        return comments.get(line, '') if line != last else ''
    return [Parameter(stars + x.arg, x.annotation, d, comment(x, d)) if x else Parameter('*', None, None, '')
            for stars, x, d in given if not (x and x.arg in ('self', 'cls'))]


def end_of_header(function):
    "The line whose comment is about what comes back; 0 if a parameter's comment stands on the last one."
    if function.returns: return function.returns.end_lineno
    arguments = [n for n in ast.walk(function.args) if isinstance(n, ast.arg)]
    return function.lineno if all(n.end_lineno == function.lineno for n in arguments) else 0


def field_of(
    node, # annotated assignment in the body of a dataclass
    comments, # line -> comment
):
    "A field; what `field` or `option` says of it stands for the comment that it has not."
    default, about = node.value, comments.get(node.end_lineno, '')
    if isinstance(default, ast.Call) and unparsed(default.func) in ('field', 'option'):
        said = {k.arg: k.value for k in default.keywords}
        said |= {k.arg: k.value for k in getattr(said.get('metadata'), 'keywords', ())}
        said |= dict(zip(('default', 'help'), default.args))
        about = about or (said['help'].value if isinstance(said.get('help'), ast.Constant) else unparsed(said.get('help')))
        made = said.get('default_factory')
        default = said.get('default') if made is None else made.body if isinstance(made, ast.Lambda) else ast.Call(made, [], [])
    return Parameter(node.target.id, node.annotation, default, about)


class Reference:
    "The names of all modules, so that each finds what it builds on."
    def __init__(self,
        modules, # of the package
    ):
        self.modules = modules
        self.homes = {} # name -> modules that define it for others
        for m in modules:
            for name in m.names:
                if name in m.defined: self.homes.setdefault(name, []).append(m)

    def link(self,
        name, # that a module offers
        module, # which may have it from elsewhere
    ):
        "Markdown that leads to where the name is described."
        homes = [module] if name in module.defined else self.homes.get(name, [])
        found = next((m for m in homes if any(m.name.endswith(i) for i in module.imported)), next(iter(homes), None))
        return f'{{py:obj}}`~{found.name}.{name}`' if found else f'`{name}`'

    def fields(self, node, module):
        "The fields of a dataclass, those of its bases first."
        own = {f.name: f for n in node.body if isinstance(n, ast.AnnAssign) and 'ClassVar' not in unparsed(n.annotation)
               for f in [field_of(n, module.comments)]}
        inherited = {}
        for base in map(unparsed, node.bases):
            if not (homes := [module] if base in module.defined else self.homes.get(base)): continue
            if is_dataclass(homes[0].defined[base]): inherited |= self.fields(homes[0].defined[base], homes[0])
        return inherited | own

    def page(self, module):
        "The Markdown of a module's page, but for its heading."
        own = [name for name in module.names if name in module.defined]
        passed = [f'- {self.link(name, module)}' for name in module.names if name not in module.defined]
        return '\n\n'.join([fenced('{py:module} ' + module.name, ''), *(['\n'.join(passed)] if passed else []),
                            *(self.entry(name, module) for name in sorted(own, key=lambda n: module.defined[n].lineno))])

    def entry(self, name, module):
        "The Markdown of one name."
        node = module.defined[name]
        if isinstance(node, ast.ClassDef): return self.class_entry(node, module)
        if isinstance(node, FUNCTIONS): return function_entry(node, module)
        code = ast.get_source_segment(module.source, node)
        return described('data', name, prose(module.comments.get(node.lineno, '') if '\n' not in code else ''), fenced('python', code))

    def class_entry(self, node, module):
        bases = ', '.join(f'`{unparsed(b)}`' for b in node.bases)
        init = next((n for n in node.body if isinstance(n, FUNCTIONS) and n.name == '__init__'), None)
        given = parameters(init, module.comments) if init else [*self.fields(node, module).values()] if is_dataclass(node) else []
        signature = f"{node.name}({', '.join(map(str, given))})" if given else node.name
        methods = [method_entry(n, module) for n in node.body if isinstance(n, FUNCTIONS) and is_shown(n)]
        return described('class', signature, f'Builds on {bases}.' if bases else '', docstring(node), table(given), *methods)


def is_dataclass(node): return any(unparsed(d).startswith('dataclass') for d in node.decorator_list)


def is_shown(method):
    "Is it for callers: a public name, or a special one that says what it does?"
    special = method.name.startswith('__') and method.name != '__init__' and ast.get_docstring(method)
    return bool(special) or not method.name.startswith('_')


def docstring(node): return prose(inspect.cleandoc(ast.get_docstring(node) or ''))


def table(
    given, # parameters
    returned=None, # what comes back, as a parameter without a name
):
    "The parameters as a table; '' if there is nothing to say of them that the signature does not."
    rows = [p for p in given if p.name != '*'] + ([returned] if returned and returned.about else [])
    if not any(p.about for p in rows): return ''
    def cell(text): return text.replace('|', r'\|')
    def code(text): return f'`` {cell(text)} ``' if '`' in text else f'`{cell(text)}`' if text else ''
    def row(p):
        name = '*returns*' if p is returned else code(p.name)
        return f"| {name} | {code(p.type)} | {code(p.default)} | {cell(prose(p.about))} |"
    return '\n'.join(['| | type | default | |', '| --- | --- | --- | --- |', *map(row, rows)])


def described(kind, signature, *content, options=()):
    "A directive of Sphinx's Python domain."
    return fenced(f'{{py:{kind}}} {signature}', '\n\n'.join(part for part in ('\n'.join(f':{o}:' for o in options), *content) if part))


def function_entry(node, module, kind='function', options=()):
    given = parameters(node, module.comments)
    returned = Parameter('', node.returns, None, module.comments.get(end_of_header(node), ''))
    arrow = f' -> {returned.type}' if returned.type else ''
    return described(kind, f"{node.name}({', '.join(map(str, given))}){arrow}", docstring(node), table(given, returned), options=options)


def method_entry(node, module):
    marks = {unparsed(d).split('.')[-1] for d in node.decorator_list}
    if not {'property', 'cached_property'} & marks:
        return function_entry(node, module, 'method', sorted(marks & {'classmethod', 'staticmethod', 'abstractmethod'}))
    about = module.comments.get(end_of_header(node), '')
    typed = f'`{annotation(node.returns)}`' if node.returns else ''
    return described('property', node.name, docstring(node), ': '.join(filter(None, [typed, prose(about)])))
