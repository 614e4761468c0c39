"How Sphinx makes the site from the pages that `stage.py` has written: `make docs`."
import builtins, json, sys
from importlib.util import find_spec
from pathlib import Path

import docutils
from docutils import nodes
from docutils.utils.math import math2html
from sphinx.addnodes import pending_xref

sys.path.insert(0, str(Path(__file__).parent))
from pages import figure
from stage import settings

project, author, release = settings()['title'], settings()['author'], settings()['version']
copyright = settings()['copyright']

extensions = ['myst_parser']
myst_enable_extensions = ['dollarmath', 'attrs_block']
myst_disable_syntax = ['myst_line_comment', 'myst_target', 'myst_block_break'] # a notebook means what Jupyter shows
myst_heading_anchors = 4
smartquotes = False
suppress_warnings = ['myst.header', 'misc.highlighting_failure'] # notebooks skip levels, and show what is no language
exclude_patterns = ['.doctrees']

add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = 'hide'

html_theme = 'furo'
html_title = project
html_static_path = ['static', str(Path(find_spec('plotly').origin).parent/'package_data'/'plotly.min.js'),
                    str(Path(docutils.__file__).parent/'writers'/'html5_polyglot'/'math.css')]
html_css_files = ['math.css', 'site.css']
html_js_files = ['figures.js']
html_math_renderer = 'plain'
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False


def draw_pictures(app, doctree):
    "A picture beside which its Plotly figure is kept is drawn from that; it is what a reader without JavaScript sees."
    for image in [*doctree.findall(nodes.image)]:
        kept = (Path(app.srcdir)/image['uri']).with_suffix('.json')
        if not kept.exists(): continue
        spec = json.loads(kept.read_text(encoding='utf-8'))
        image.parent.insert(image.parent.index(image) + 1, nodes.raw('', figure(spec), format='html'))


def math(writer, node):
    "Mathematics as HTML: browsers without a font for MathML show it too."
    block = isinstance(node, nodes.math_block)
    math2html.DocumentParameters.displaymode = block
    shown = math2html.math2html(node.astext())
    writer.body.append(f'<div class="math">{shown}</div>' if block else shown)
    raise nodes.SkipNode


def is_type(node): return node.get('refdomain') == 'py' and node['reftype'] == 'class'


def keep_builtins(app, doctree):
    "Sphinx takes the type `slice` for anybody's attribute of that name."
    for node in [*doctree.findall(pending_xref)]:
        if is_type(node) and hasattr(builtins, node['reftarget']): node.replace_self(node.children)


classes = {} # name -> full names of the classes that are called so


def find_classes(app, env):
    for name, what in env.get_domain('py').objects.items():
        if what.objtype == 'class': classes.setdefault(name.split('.')[-1], []).append(name)


def link_type(app, env, node, shown):
    "A type in a signature leads to the class of that name, if only one module has it."
    found = classes.get(node['reftarget'], []) if is_type(node) else []
    if len(found) == 1: return env.get_domain('py').resolve_xref(env, node['refdoc'], app.builder, 'class', found[0], node, shown)


def setup(app):
    app.add_html_math_renderer('plain', (math, None), (math, None))
    app.connect('doctree-read', draw_pictures)
    app.connect('doctree-read', keep_builtins)
    app.connect('env-check-consistency', find_classes)
    app.connect('missing-reference', link_type)
