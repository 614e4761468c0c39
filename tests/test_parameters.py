"The parameters cell and its values: what Python and YAML 1.2 say, for any cell and any value of their grammars."
import json

import pytest
from hypothesis import given, settings, strategies as st
from notebooks import write_experiment

from interlat.core.arguments import read_yaml
from interlat.core.basics import InterlatError
from interlat.runs.parameters import as_type, check_parameters, declared, notebook_parameters, with_parameters

few = settings(max_examples=30, deadline=None)
NAMES = st.sampled_from(['seed', 'lr', 'a', 'b_1', 'ärger'])
TEXT = st.text('aé漢😀 \t\n"\'\\#=;:%!{}[],0', max_size=8) | st.sampled_from(['x = 1', 'a; b', '# no', "'", '"', '\\', '%pip', '!ls', '\n', '>>> 1'])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(SCALARS.filter(lambda x: x == x), lambda v: st.lists(v, max_size=3) | st.lists(v, max_size=3).map(tuple) | st.dictionaries(TEXT, v, max_size=3), max_leaves=6)
finite = st.deferred(lambda: VALUES.filter(lambda v: 'inf' not in repr(v))) # there is no literal for it


@pytest.fixture(scope='module')
def declares(tmp_path_factory):
    "Name -> default of a cell."
    path = tmp_path_factory.mktemp('cells')/'E00_x.ipynb'
    return lambda cell: notebook_parameters(write_experiment(path, '1', cell))


@few
@given(st.dictionaries(NAMES, finite, min_size=1, max_size=4), st.data())
def test_python_reads_the_cell(declares, values, data):
    "Any literals, with or without annotations and comments, on one line or several."
    parts = []
    for name, value in values.items():
        kind = data.draw(st.sampled_from(['', ": 'np.ndarray'", ': my.Kind[int]', f': {type(value).__name__}', f': int | str | {type(value).__name__}']))
        parts.append(f'{name}{kind} = {value!r}')
        parts.append(data.draw(st.sampled_from(['; ', ' # = 1; b\n', '\n', '\n# c = 3\n', ';\n'])))
    assert declares(''.join(parts)) == values


@few
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4))
def test_a_run_sees_the_values_that_were_given(tmp_path_factory, values):
    path, seen = write_experiment(tmp_path_factory.getbasetemp()/'E00_y.ipynb', '1', '\n'.join(f'{n} = None' for n in values)), {}
    exec(with_parameters(path, values).cells[1].source, seen)
    assert {n: seen[n] for n in values} == values


JSON = st.recursive(SCALARS.filter(lambda v: v not in (float('inf'), -float('inf'))), lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=8)


@few
@given(JSON, st.sampled_from([None, 2, '\t']), st.booleans())
def test_json_is_yaml(value, indent, ascii): assert read_yaml(json.dumps(value, indent=indent, ensure_ascii=ascii), '') == value


@few
@given(st.sampled_from(['', '-', '+']), st.integers(0, 10**9), st.integers(0, 3))
def test_a_whole_number_is_decimal(sign, number, zeros):
    text = f"{sign}{'0'*zeros}{number}"
    assert read_yaml(text, '') == read_yaml(f'x: {text}', '')['x'] == as_type('x', text, 0) == int(text)
    assert read_yaml('0o17', '') == 15 and read_yaml('0x1f', '') == 31


@few
@given(*map(st.sampled_from, (['', '-', '+'], ['1', '007', '1.', '.5', '2.25'], ['e3', 'E+03', 'e-3'])))
def test_a_float_needs_no_dot(sign, number, power):
    text = sign + number + power
    found = read_yaml(f'[{text}]', '')[0]
    assert type(found) is float and found == float(text) == as_type('x', text, .5)


@few
@given(st.sampled_from('yes Yes YES no No NO on On ON off Off OFF y n Y N 1:30 190:20:30 1:30.5 2026-11-01 2026-11-01T10:00:00Z 1_000 0b11 1e 0o8 0x 08:15 = tRue nUll .NaNs ..5 +-1 1e1.5'.split()))
def test_what_only_yaml_of_2005_knows_is_text(word):
    assert read_yaml(word, '') == word == read_yaml(f'a: [{word}]', '')['a'][0] == as_type('x', word, None)
    for default in (0, .5, False, []):
        with pytest.raises(InterlatError, match=f'parameter x takes {type(default).__name__} values such as [^\n]*$'): as_type('x', word, default)


@pytest.mark.parametrize('params, wrong', [
    (dict(mode='c'), r"parameter mode takes Literal\['a', 'b'\] values such as 'a' \(which\), found 'c'"), (dict(width='ten'), r"parameter width takes int \| None values such as None, found 'ten'"),
    (dict(pair=[1]), r'parameter pair takes tuple\[int, int\] values such as \(1, 2\), found \[1\]'), (dict(rates='[1, x]'), r"parameter rates takes list\[float\] values such as \[0.1\], found '\[1, x\]'"),
    (dict(anything={1, 2}), r'parameter anything: \{1, 2\} is nothing that JSON knows'), (dict(anything={1: 2}), 'parameter anything: the keys of a mapping must be text, found 1')])
def test_a_value_that_does_not_fit_is_one_line(tmp_path, params, wrong):
    path = write_experiment(tmp_path/'E00_x.ipynb', '1', "mode: Literal['a', 'b'] = 'a' # which\nwidth: 'int | None' = None\npair: tuple[int, int] = 1, 2; rates: list[float] = [.1]\nanything = None")
    with pytest.raises(InterlatError, match=f'^{wrong}$'): check_parameters(path, params)
    assert declared(path)['mode'].help == 'which'


def test_two_cells_of_parameters_are_refused(tmp_path):
    path = write_experiment(tmp_path/'E00_x.ipynb', '1')
    nb = json.loads(path.read_text())
    path.write_text(json.dumps(dict(nb, cells=[*nb['cells'], dict(nb['cells'][0], id='second')])))
    with pytest.raises(InterlatError, match='tags 2 cells `parameters`; tag one'): notebook_parameters(path)
